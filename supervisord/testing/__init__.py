"""What packages of others test themselves with; needs ``pytest`` and ``pytest-asyncio``.

``SnapshotterSuite`` is the one suite that every snapshotter passes: see ``docs/plugins.md``.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    f"{__name__}.life", f"{__name__}.labels", f"{__name__}.layers", f"{__name__}.names"
)

from .suite import SnapshotterSuite  # noqa: E402

__all__ = ["SnapshotterSuite"]
