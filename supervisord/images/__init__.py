"""Images: references, registries, and what goes between them and the content store."""
