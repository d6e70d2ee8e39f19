"""The mount manager: activations of mounts, by name."""
