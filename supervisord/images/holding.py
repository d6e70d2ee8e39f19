"""Blobs that are here already, held by the lease of whoever found them.

Nobody else may want such a blob, and a collection may begin at any time. The content store holds
what it refuses to have written again, in one step.
"""

from __future__ import annotations

import contextlib

from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import AlreadyExists, NotFound, Unavailable
from supervisord.contracts.scope import Scope


async def held(content: ContentStore, scope: Scope, ref: str, digest: str, size: int) -> bool:
    """Whether the namespace has the blob, which is the lease's from now on. ``ref`` is that of
    the ingest which would bring it. Raises InvalidArgument."""
    try:
        writer = await content.writer(scope, ref, total=size, expected=digest)
    except AlreadyExists:
        return True
    except Unavailable:
        return False  # it went just now, and somebody brings it again
    offset = writer.status.offset
    await writer.close()
    if not offset:
        with contextlib.suppress(NotFound):
            await content.abort(scope, ref)
    return False
