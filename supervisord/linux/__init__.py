"""What the kernel offers: the only room with raw system calls.

Used by the daemon, by shims, snapshotters and workers, so it imports the standard library,
protobuf and the contracts only. Functions here block; whoever runs an event loop calls those that
may take long (mounts, removals) from a thread.
"""
