"""A differ over mounts that only the mount manager understands: they are activated for as long as
the differ works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from supervisord.contracts.diff import Application, ApplyOptions, Differ, DiffOptions
from supervisord.contracts.images import Descriptor
from supervisord.contracts.mounts import MountManager
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount

_OWN = Scope("")
"""Of what is done for nobody's namespace in particular."""


class Activated:
    """Gives ``differ`` system mounts, whatever it is asked for."""

    def __init__(self, differ: Differ, manager: MountManager) -> None:
        self._differ = differ
        self._manager = manager

    @asynccontextmanager
    async def applying(
        self, media_type: str, mounts: Sequence[Mount], options: ApplyOptions
    ) -> AsyncIterator[Application]:
        """See contracts.diff."""
        async with (
            self._manager.for_a_while(_OWN, mounts) as ready,
            self._differ.applying(media_type, ready, options) as application,
        ):
            yield application

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        async with self._manager.for_a_while(scope, mounts) as ready:
            return await self._differ.apply(scope, descriptor, ready, options)

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        async with (
            self._manager.for_a_while(scope, lower) as below,
            self._manager.for_a_while(scope, upper) as above,
        ):
            return await self._differ.diff(scope, below, above, options)
