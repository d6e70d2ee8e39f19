"""SQLite as the daemon uses it: one writer thread with group commit, readers that never wait,
and migrations from the first version on. Used by the metadata room and by snapshotters."""
