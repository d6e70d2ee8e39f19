"""Uploads: blobs and manifests into a repository (OCI distribution, "Pushing").

A blob that the registry has is not sent; one that it has in another repository is mounted from
there; else it is sent in one request, and where that is cut, from where the registry got to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import urljoin, urlsplit

from supervisord.contracts.errors import (
    Error,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unknown,
)

from ..hosts.endpoint import Capability
from ..oci import media
from ..oci.documents import Descriptor
from ..reference import Reference
from .delays import delay
from .http import aiohttp
from .repository import Repository
from .session import Session

log = logging.getLogger(__name__)

Read = Callable[[int], AsyncIterator[bytes]]
"""The bytes of a blob from an offset on."""

_MOST_CUTS = 5


class Uploads:
    """Writes to the first endpoint of a repository that may be pushed to."""

    def __init__(self, repository: Repository) -> None:
        """Raises NotFound where no endpoint may be pushed to."""
        self._repository = repository
        self._session: Session = repository.able(Capability.PUSH)[0]

    @property
    def reference(self) -> Reference:
        """What is pushed to."""
        return self._repository.reference

    async def has(self, descriptor: Descriptor) -> bool:
        """Whether the repository has the blob, or the manifest."""
        is_document = descriptor.is_index or descriptor.is_manifest
        kind = "manifests" if is_document else "blobs"
        url = self._url(f"{kind}/{descriptor.digest}")
        headers = {"Accept": f"{descriptor.media_type}, */*"} if is_document else {}
        async with self._request("HEAD", url, headers=headers, good=(200, 404)) as response:
            return response.status == 200

    async def tagged(self, tag: str) -> str:
        """The digest that a tag has, "" where there is none."""
        url = self._url(f"manifests/{tag}")
        headers = {"Accept": ", ".join((*media.ACCEPTED, "*/*"))}
        async with self._request("HEAD", url, headers=headers, good=(200, 404)) as response:
            if response.status == 404:
                return ""
            return response.headers.get("Docker-Content-Digest", "")

    async def blob(self, descriptor: Descriptor, read: Read, sources: Sequence[str] = ()) -> bool:
        """Sends a blob; ``sources`` are repositories of this registry that may have it. False
        where it was mounted from one of them. Raises as requests do."""
        location: str | None = ""
        for source in sources:
            location = await self._mounted(descriptor, source)
            if location is None:
                return False
            if location:
                break  # the answer began an upload, which is used
        location = location or await self._begun()
        await self._sent(descriptor, read, location)
        return True

    async def manifest(self, descriptor: Descriptor, data: bytes, target: str) -> None:
        """Puts a manifest or an index under a tag or its digest."""
        url = self._url(f"manifests/{target}")
        headers = {"Content-Type": descriptor.media_type}
        async with self._request("PUT", url, headers=headers, data=data, good=(200, 201, 202)):
            return

    # A blob's way -------------------------------------------------------------------------

    async def _begun(self) -> str:
        url = self._url("blobs/uploads/")
        async with self._request("POST", url, data=b"", good=(201, 202)) as response:
            return _location(url, response)

    async def _mounted(self, descriptor: Descriptor, source: str) -> str | None:
        """None once it is there; else where it can be sent to. "" where the registry refuses: the
        other repository may be one that we may not read any more."""
        query = {"mount": descriptor.digest, "from": source}
        url = self._url("blobs/uploads/", query)
        scopes = (*self._scopes, f"repository:{source}:pull")
        try:
            async with self._session.request(
                "POST", url, scopes=scopes, data=b"", good=(201, 202)
            ) as response:
                return None if response.status == 201 else _location(url, response)
        except (Unauthenticated, PermissionDenied, NotFound) as error:
            log.info("%s: not mounted from %s: %s", descriptor.digest, source, error)
            return ""

    async def _sent(self, descriptor: Descriptor, read: Read, location: str) -> None:
        cuts, offset = 0, 0
        while True:
            try:
                if offset:
                    location = await self._continued(descriptor, read, location, offset)
                    offset = descriptor.size
                await self._finished(descriptor, read, location, offset)
                return
            except Unavailable:
                cuts += 1
                if cuts >= _MOST_CUTS:
                    raise
                await asyncio.sleep(delay(cuts))
                location, offset = await self._resumed(location)

    async def _finished(
        self, descriptor: Descriptor, read: Read, location: str, offset: int
    ) -> None:
        """The rest, and the digest of all."""
        mark = "&" if "?" in location else "?"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size - offset),
        }
        async with self._request(
            "PUT",
            f"{location}{mark}digest={descriptor.digest}",
            headers=headers,
            data=b"" if offset == descriptor.size else lambda: read(offset),
            good=(201, 204),
            once=True,
        ):
            return

    async def _continued(
        self, descriptor: Descriptor, read: Read, location: str, offset: int
    ) -> str:
        """What is missing after a cut; answers where the upload is finished."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size - offset),
            "Content-Range": f"{offset}-{descriptor.size - 1}",
        }
        async with self._request(
            "PATCH",
            location,
            headers=headers,
            data=lambda: read(offset),
            good=(202,),
            once=True,
        ) as response:
            return _location(location, response)

    async def _resumed(self, location: str) -> tuple[str, int]:
        """How far an upload got, and where it goes on; a new one where it is not known."""
        try:
            async with self._request("GET", location, good=(204,)) as response:
                _, _, last = response.headers.get("Range", "").rpartition("-")
                offset = int(last) + 1 if last.isdecimal() and last != "0" else 0
                return _location(location, response), offset
        except NotFound:
            return await self._begun(), 0
        except Error as error:
            if isinstance(error, Unavailable):
                raise
            return await self._begun(), 0

    def _url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        return self._repository.url(self._session, path, query)

    @property
    def _scopes(self) -> Sequence[str]:
        return self._repository.scopes(push=True)

    def _request(
        self,
        method: str,
        url: str,
        *,
        good: Sequence[int],
        headers: dict[str, str] | None = None,
        data: bytes | Callable[[], AsyncIterator[bytes]] | None = None,
        once: bool = False,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.request(
            method,
            url,
            scopes=self._scopes,
            headers=headers,
            data=data,
            good=good,
            attempts=1 if once else 0,
        )


def _location(url: str, response: aiohttp.ClientResponse) -> str:
    found = urljoin(url, response.headers.get("Location", ""))
    if urlsplit(found).scheme not in ("http", "https") or not response.headers.get("Location"):
        raise Unknown(f"{url.partition('?')[0]}: the registry does not say where to send it")
    return found
