"""The standard streams of a container's process: FIFOs, copying, terminals, signals."""
