"""Any snapshotter as a server of its own: a proxy plugin for containerd, or for another daemon.

``python -m snapshotters.serve --help`` tells how; ``SnapshotServer`` is the same for programs.
"""

from .server import SnapshotServer

__all__ = ["SnapshotServer"]
