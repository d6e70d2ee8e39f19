"""Image archives: OCI image layouts and docker's ``save`` format, as tar streams both ways."""
