"""From a reference to its repository: the endpoints that are configured, each with a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from ..hosts import folder
from ..hosts.endpoint import Endpoint
from ..reference import Reference
from .keeper import NOBODY, Keeper
from .repository import Repository
from .session import Patience, session


@dataclass(frozen=True, slots=True)
class Access:
    """How a client wants a registry asked: folders of hosts, the scheme where nothing else says
    it, further headers, and who it is."""

    roots: Sequence[str] = ()
    scheme: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    keeper: Keeper = NOBODY


@asynccontextmanager
async def connected(
    reference: Reference, access: Access, patience: Patience | None = None
) -> AsyncIterator[Repository]:
    """The repository; its connections are closed with the block. Raises InvalidArgument."""
    endpoints = await asyncio.to_thread(
        folder.endpoints, reference.host, access.roots, access.scheme
    )
    async with AsyncExitStack() as stack:
        sessions = []
        for endpoint in endpoints:
            asked = _with(endpoint, access.headers)
            opening = session(asked, access.keeper, patience)
            sessions.append(await stack.enter_async_context(opening))
        yield Repository(reference, sessions)


def _with(endpoint: Endpoint, headers: Mapping[str, str]) -> Endpoint:
    """What is configured for a host comes before what a client asks for all."""
    if not headers:
        return endpoint
    known = {name.lower() for name in endpoint.header}
    more = {name: (value,) for name, value in headers.items() if name.lower() not in known}
    return replace(endpoint, header={**more, **endpoint.header})
