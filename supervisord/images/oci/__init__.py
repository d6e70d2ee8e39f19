"""The documents of the OCI image specification, read from bytes that nobody has vouched for."""
