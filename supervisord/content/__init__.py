"""Blobs and ingests as files. What they mean, and to whom they belong, is the metadata room's."""
