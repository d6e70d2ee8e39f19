"""Programs that misbehave as they are told: a fake OCI runtime and a fake shim."""
