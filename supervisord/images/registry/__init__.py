"""The client of registries: OCI distribution 1.1, and docker's registry API v2 before it."""
