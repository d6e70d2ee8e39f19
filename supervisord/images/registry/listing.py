"""Lists of a repository: its tags, and what refers to one of its manifests.

Lists come in pages (Link headers). A registry without the referrers API keeps an index under a tag
made from the digest instead (OCI distribution 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from supervisord.contracts.errors import Error, NotFound, Unavailable, Unknown

from ..hosts.endpoint import Capability
from ..oci import documents, media
from ..oci.documents import LARGEST_MANIFEST, Descriptor
from .repository import Body, Repository
from .session import Session

_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')
_MOST_PAGES = 1000
_LARGEST_PAGE = 4 << 20


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


_TAGS = msgspec.json.Decoder(_Tags)


async def tags(repository: Repository, page_size: int = 1000) -> AsyncIterator[str]:
    """All tags, in the registry's order. Raises NotFound, Unknown, and what requests raise."""
    session = repository.able(Capability.RESOLVE)[0]
    url = repository.url(session, "tags/list", {"n": str(page_size)})
    async for page in _pages(repository, session, url, "application/json"):
        try:
            found = _TAGS.decode(page).tags or ()
        except msgspec.DecodeError as error:
            raise Unknown(f"{repository.reference.locator}: tags: {error}") from error
        for tag in found:
            yield tag


async def referrers(
    repository: Repository, digest: str, artifact_type: str = ""
) -> Sequence[Descriptor]:
    """Manifests whose subject has this digest, of one type or of any; none where no endpoint knows
    of any. What one endpoint cannot say, the next one may.

    Raises Unknown, InvalidArgument (what is no index), and what requests raise."""
    query = {"artifactType": artifact_type} if artifact_type else {}
    tag = digest.replace(":", "-", 1)
    refused: Error | None = None
    for path, asked, needed in (
        (f"referrers/{digest}", query, Capability.REFERRERS),
        (f"manifests/{tag}", {}, Capability.RESOLVE),
    ):
        for session, attempts in repository.in_turn(needed, required=False):
            try:
                found = await _index(repository, session, (path, asked), digest, attempts)
            except NotFound:
                continue
            except Error as error:
                refused = refused or error
                continue
            return [one for one in found if artifact_type in ("", one.artifact_type)]
    if refused is not None:
        raise refused
    return []


async def _index(
    repository: Repository,
    session: Session,
    asked: tuple[str, Mapping[str, str]],
    digest: str,
    attempts: int,
) -> Sequence[Descriptor]:
    """What an index lists that may come in pages."""
    found: list[Descriptor] = []
    url = repository.url(session, *asked)
    async for page in _pages(repository, session, url, media.INDEX, attempts):
        found.extend(documents.index(page, digest).manifests or ())
    return found


async def _pages(
    repository: Repository, session: Session, url: str, accept: str, attempts: int = 0
) -> AsyncIterator[bytes]:
    """The bodies of a list."""
    for _ in range(_MOST_PAGES):
        async with session.request(
            "GET", url, scopes=repository.scopes(), headers={"Accept": accept}, attempts=attempts
        ) as response:
            data = bytearray()
            async for chunk in Body(response, 0, -1).chunks():
                data += chunk
                if len(data) > max(_LARGEST_PAGE, LARGEST_MANIFEST):
                    raise Unknown(f"{url}: a page of more than {_LARGEST_PAGE} bytes")
            following: Any = _NEXT.search(response.headers.get("Link", ""))
        yield bytes(data)
        if following is None:
            return
        target = urljoin(url, following[1])
        if urlsplit(target).netloc != urlsplit(url).netloc:
            raise Unknown(f"{url}: the next page is on another server: {target[:200]}")
        url = target
    raise Unavailable(f"{url}: more than {_MOST_PAGES} pages")
