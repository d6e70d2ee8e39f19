"""The snapshotters that come with the daemon, as plugins, in the order in which they are offered.

Both the daemon and ``snapshotters.serve`` start them from here.
"""

from __future__ import annotations

from supervisord.contracts.plugins import Registration

from .btrfs.plugin import BTRFS
from .erofs.plugin import EROFS
from .native.plugin import NATIVE
from .overlayfs.plugin import OVERLAYFS

SNAPSHOTTERS: tuple[Registration, ...] = (BTRFS, EROFS, NATIVE, OVERLAYFS)
