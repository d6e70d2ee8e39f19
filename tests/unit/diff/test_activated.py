"""A differ behind the mount manager has all that a differ has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from unittest import mock

from supervisord.contracts.diff import Application, ApplyOptions, Differ, DiffOptions
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.diff.activated import Activated

SCOPE = Scope("ns")
WANTED, READY = [Mount("format/bind", "x")], [Mount("bind", "y")]


class Mounts:
    """A mount manager that knows one list."""

    def __init__(self) -> None:
        self.active = 0

    @asynccontextmanager
    async def for_a_while(
        self, scope: Scope, mounts: Sequence[Mount]
    ) -> AsyncIterator[Sequence[Mount]]:
        assert mounts == WANTED
        self.active += 1
        yield READY
        self.active -= 1


async def test_every_way_to_use_it() -> None:
    mounts, inner = Mounts(), mock.create_autospec(Differ, instance=True)
    differ: Differ = Activated(inner, mounts)  # type: ignore[arg-type]
    layer = Descriptor("type", "sha256:0", 1)
    await differ.apply(SCOPE, layer, WANTED, ApplyOptions())
    inner.apply.assert_awaited_once_with(SCOPE, layer, READY, ApplyOptions())
    await differ.diff(SCOPE, WANTED, WANTED, DiffOptions())
    inner.diff.assert_awaited_once_with(SCOPE, READY, READY, DiffOptions())
    fed = mock.create_autospec(Application, instance=True)
    inner.applying.return_value.__aenter__ = mock.AsyncMock(return_value=fed)
    inner.applying.return_value.__aexit__ = mock.AsyncMock(return_value=None)
    async with differ.applying("type", WANTED, ApplyOptions()) as application:
        assert application is fed
        assert mounts.active == 1
    inner.applying.assert_called_once_with("type", READY, ApplyOptions())
    assert mounts.active == 0
