"""Several differs as one: each is asked in its turn until one does not answer Unimplemented."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from supervisord.contracts.diff import Application, ApplyOptions, Differ, DiffOptions
from supervisord.contracts.errors import Unimplemented
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount

T = TypeVar("T")


class Turns:
    """``differs`` in the order in which they are asked; the last one's refusal counts."""

    def __init__(self, differs: Sequence[Differ]) -> None:
        self._differs = tuple(differs)

    @asynccontextmanager
    async def applying(
        self, media_type: str, mounts: Sequence[Mount], options: ApplyOptions
    ) -> AsyncIterator[Application]:
        """See contracts.diff."""
        async with AsyncExitStack() as stack:

            def begin(differ: Differ) -> Awaitable[Application]:
                return stack.enter_async_context(differ.applying(media_type, mounts, options))

            yield await self._ask(begin, f"no differ applies media type {media_type!r}")

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        return await self._ask(
            lambda differ: differ.apply(scope, descriptor, mounts, options),
            f"no differ applies media type {descriptor.media_type!r}",
        )

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        return await self._ask(
            lambda differ: differ.diff(scope, lower, upper, options),
            f"no differ writes media type {options.media_type!r}",
        )

    async def _ask(self, call: Callable[[Differ], Awaitable[T]], refused: str) -> T:
        refusal = Unimplemented(refused)
        for differ in self._differs:
            try:
                return await call(differ)
            except Unimplemented as error:
                refusal = error
        raise refusal
