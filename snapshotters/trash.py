"""Removes directory trees of snapshots that are no more; called in a thread.

Failures are reported, not raised: the row is gone already, and ``cleanup`` tries again.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


def remove_tree(path: Path) -> bool:
    """Whether nothing is left at ``path``."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        log.warning("could not remove the snapshot directory %s: %s", path, error)
        return False
    return True
