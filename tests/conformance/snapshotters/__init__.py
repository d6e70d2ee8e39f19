"""The conformance suite that every snapshotter must pass; see ``suite.SnapshotterSuite``."""
