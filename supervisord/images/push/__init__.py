"""Pushing: blobs and manifests of an image to a registry."""
