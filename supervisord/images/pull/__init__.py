"""Pulling: documents, layers, snapshots and the image's name, in one pass."""
