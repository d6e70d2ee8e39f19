"""Who we are to a registry: what a client tells, and docker's configuration."""
