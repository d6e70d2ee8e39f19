"""Registries for tests: Debian's ``docker-registry`` on loopback, guarded in each of its ways."""
