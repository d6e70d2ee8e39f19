"""Which servers are asked for a registry's images: ``hosts.toml`` folders and the defaults."""
