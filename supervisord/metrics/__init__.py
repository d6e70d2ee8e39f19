"""Prometheus metrics over HTTP. Nothing here is imported unless the configuration asks for it."""
