"""One repository at its endpoints: names resolved, blobs and manifests opened.

The endpoints are asked in order. What a mirror does not have or cannot serve, the next one may, so
only the last one is asked again; one that was not reached is asked after the others from then on.
The error that is reported is the one that came furthest: a refusal says more than "not found", and
that more than a server that was not reached.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from supervisord.contracts.errors import (
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)

from ..hosts.endpoint import Capability, Endpoint
from ..oci import documents, media
from ..oci.documents import LARGEST_MANIFEST, Descriptor
from ..reference import Reference, is_digest
from . import encodings
from .http import aiohttp
from .intake import received
from .keeper import NOBODY
from .session import Session, session

log = logging.getLogger(__name__)

_DIGEST_HEADER = "Docker-Content-Digest"
_LARGE = 4 << 20
"""Above it a body is worth a connection of its own, which is not used again."""
_ACCEPT = ", ".join((*media.ACCEPTED, "*/*"))
_KNOWN = media.INDEXES | media.MANIFESTS | media.SCHEMA1


@dataclass(slots=True)
class Body:
    """An open body: ``size`` bytes from ``offset`` on, -1 where the server does not say.
    ``encoding`` is how it was packed for the way, "" for not; ``stall``: seconds without any byte
    until it counts as cut."""

    response: aiohttp.ClientResponse
    offset: int
    size: int
    encoding: str = ""
    stall: float = 30.0

    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """All of it. Raises Unavailable where it is cut, or nothing comes any more, DataLoss."""
        if self.encoding:
            return encodings.decoded(self.encoding, self._sent())
        return self._received() if self.size > _LARGE else self._sent()

    async def _received(self) -> AsyncIterator[bytes | memoryview]:
        try:
            async with aclosing(received(self.response, self.size, self.stall)) as pieces:
                async for piece in pieces:
                    yield piece
        except (Unavailable, aiohttp.ClientError, OSError) as error:
            raise self._cut(str(error)) from error

    async def _sent(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            stalled = isinstance(error, TimeoutError)
            raise self._cut(
                f"nothing came for {self.stall:g} s" if stalled else f"{error}"
            ) from error

    def _cut(self, why: str) -> Unavailable:
        url = self.response.url  # without its query, which may be a signature
        return Unavailable(f"GET {url.host_port_subcomponent}{url.path}: cut: {why}")


class Repository:
    """A repository; ``sessions`` are its endpoints in order, closed by who made them."""

    def __init__(self, reference: Reference, sessions: Sequence[Session]) -> None:
        self.reference = reference
        self._sessions = sessions

    async def resolve(self) -> Descriptor:
        """What the reference's digest or tag is: a descriptor of a manifest or an index.

        Raises NotFound, Unauthenticated, PermissionDenied, Unavailable, ResourceExhausted."""
        target = self.reference.target
        if not target:
            raise NotFound(f"{self.reference}: has neither a tag nor a digest")
        needed = Capability.PULL
        if not self.reference.digest:
            needed |= Capability.RESOLVE
        kinds = ("manifests", "blobs") if self.reference.digest else ("manifests",)
        for kind in kinds:
            failures = _Failures(self.reference)
            for asked, attempts in self.in_turn(needed):
                try:
                    return await self._resolve_at(asked, kind, target, attempts)
                except Error as error:
                    failures.add(error)
            # Only what no server has may be a blob by its digest: registries of old.
            if kind == kinds[-1] or not isinstance(failures.worst(), NotFound):
                raise failures.worst()
        raise NotFound(f"{self.reference}: not found")

    @asynccontextmanager
    async def open(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[Body]:
        """The bytes of a blob or a manifest from ``offset`` on, ``length`` at most.

        The body may begin before ``offset`` where a server knows no ranges: its own offset says so.
        Raises as resolve does."""
        async with AsyncExitStack() as stack:
            failures = _Failures(self.reference)
            body = None
            for asked, attempts in self.in_turn(Capability.PULL):
                try:
                    span = (offset, length)
                    body = await self._opened(stack, asked, descriptor, span, attempts)
                    break
                except Error as error:
                    failures.add(error)
            if body is None and isinstance(failures.worst(), NotFound):
                body = await self._elsewhere(stack, descriptor, offset, length)
            if body is None:
                raise failures.worst(descriptor.digest)
            yield body

    async def _opened(
        self,
        stack: AsyncExitStack,
        session: Session,
        descriptor: Descriptor,
        asked: tuple[int, int | None],
        attempts: int,
    ) -> Body:
        """At one endpoint; ``asked`` are offset and length. A range that it refuses, although the
        blob has those bytes, is asked for without: some servers and caches cannot resume."""
        kind = "manifests" if descriptor.is_index or descriptor.is_manifest else "blobs"
        url = self.url(session, f"{kind}/{descriptor.digest}")
        offset, length = asked

        async def answer(headers: Mapping[str, str]) -> Body:
            opening = session.request(
                "GET",
                url,
                scopes=self.scopes(),
                headers=headers,
                good=(200, 206),
                attempts=attempts,
            )
            return _body(await stack.enter_async_context(opening), offset, session.stall)

        headers = _headers(descriptor, offset, length)
        try:
            return await answer(headers)
        except OutOfRange:
            if "Range" not in headers:
                raise
            return await answer(_headers(descriptor, 0, None))

    async def _elsewhere(
        self, stack: AsyncExitStack, descriptor: Descriptor, offset: int, length: int | None
    ) -> Body | None:
        """From the addresses that a layer names which registries need not have. They are told
        nothing of us, and asked for no other blobs: a manifest could name any server of ours."""
        if not media.is_nondistributable(descriptor.media_type):
            return None
        for url in descriptor.urls or ():
            parts = urlsplit(url)
            if parts.scheme != "https" or not parts.netloc:
                continue
            try:
                stranger = await stack.enter_async_context(
                    session(Endpoint(parts.netloc, path=""), NOBODY)
                )
                response = await stack.enter_async_context(
                    stranger.request(
                        "GET", url, headers=_headers(descriptor, offset, length), good=(200, 206)
                    )
                )
                return _body(response, offset, stranger.stall)
            except Error as error:
                log.info("%s: not to be had from %s: %s", descriptor.digest, url, error)
        return None

    def able(self, needed: Capability) -> Sequence[Session]:
        """The endpoints that may be asked for it. Raises NotFound where there is none."""
        found = [one for one in self._sessions if one.endpoint.can(needed)]
        if not found:
            raise NotFound(f"{self.reference.host}: no server is configured for {needed.name}")
        return found

    def in_turn(
        self, needed: Capability, *, required: bool = True
    ) -> Sequence[tuple[Session, int]]:
        """The same, each with how often it is tried at most (0 for as often as usual): who is not
        the last is not waited for. Without ``required`` there may be none."""
        found = [one for one in self._sessions if one.endpoint.can(needed)]
        if required or found:
            found = sorted(self.able(needed), key=lambda one: one.unreached)
        return [(one, 1) for one in found[:-1]] + [(one, 0) for one in found[-1:]]

    def scopes(self, *, push: bool = False) -> Sequence[str]:
        """What a token must allow (distribution: auth/scope)."""
        return (f"repository:{self.reference.repository}:pull{',push' * push}",)

    def url(self, session: Session, path: str, query: Mapping[str, str] | None = None) -> str:
        """Of something in the repository. A server that stands for several registries has to be
        told whose image is meant."""
        registry = self.reference.host
        told = {"ns": registry} if session.endpoint.stands_for(registry) else {}
        return session.url(f"{self.reference.repository}/{path}", {**(query or {}), **told})

    async def _resolve_at(
        self, session: Session, kind: str, target: str, attempts: int
    ) -> Descriptor:
        url = self.url(session, f"{kind}/{target}")
        async with session.request(
            "HEAD",
            url,
            scopes=self.scopes(),
            headers={"Accept": _ACCEPT},
            good=(200, 401, 403, 405),
            attempts=attempts,
        ) as response:
            found = _described(response, self.reference) if response.status == 200 else None
        if found is None or (kind == "manifests" and found.media_type not in _KNOWN):
            # Without the headers, with a type that says nothing, or with a refusal whose reason a
            # HEAD cannot tell.
            found = await self._read_at(session, url, kind, attempts)
        if found.size > LARGEST_MANIFEST:
            raise ResourceExhausted(
                f"{self.reference}: a manifest of {found.size} bytes, more than {LARGEST_MANIFEST}"
            )
        if found.media_type in media.SCHEMA1:
            raise Unimplemented(
                f"{self.reference}: {found.media_type} is docker's first kind of manifest, which"
                " is not read any more: have the image built anew"
            )
        return found

    async def _read_at(self, session: Session, url: str, kind: str, attempts: int) -> Descriptor:
        async with session.request(
            "GET", url, scopes=self.scopes(), headers={"Accept": _ACCEPT}, attempts=attempts
        ) as response:
            algorithm = self.reference.digest.partition(":")[0] or "sha256"
            data = bytearray()
            async for chunk in _body(response, 0, session.stall).chunks():
                data += chunk
                if len(data) > LARGEST_MANIFEST:
                    raise ResourceExhausted(
                        f"{self.reference}: a manifest of more than {LARGEST_MANIFEST} bytes"
                    )
            digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            if self.reference.digest not in ("", digest):
                raise FailedPrecondition(f"{self.reference}: the registry sent {digest}")
            media_type = _media_type(response)
            if kind == "manifests" and media_type not in _KNOWN:
                found = documents.kind(bytes(data))
                if not found:
                    raise InvalidArgument(
                        f"{self.reference}: what the registry sent, as {media_type}, is no manifest"
                    )
                media_type = found
            return Descriptor(media_type, digest, len(data))


class _Failures:
    """Why no endpoint served, the most telling one first."""

    _RANKS = (Unavailable, NotFound, Unauthenticated, PermissionDenied)

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._found: list[Error] = []

    def add(self, error: Error) -> None:
        self._found.append(error)

    def worst(self, what: str = "") -> Error:
        error = max(self._found, key=self._rank)  # the first of equals
        if isinstance(error, NotFound):
            name = f"{self._reference.locator}@{what}" if what else str(self._reference)
            return NotFound(f"{name}: not found")
        if isinstance(error, (Unauthenticated, PermissionDenied)):
            return type(error)(
                f"{self._reference}: access denied: the repository does not exist or needs a login:"
                f" {error}"
            )
        return error

    def _rank(self, error: Error) -> int:
        kinds = self._RANKS
        return kinds.index(type(error)) if type(error) in kinds else len(kinds)


def _headers(descriptor: Descriptor, offset: int, length: int | None) -> Mapping[str, str]:
    headers = {"Accept": f"{descriptor.media_type or '*/*'}, */*"}
    if offset or length is not None:
        end = "" if length is None else offset + length - 1
        headers["Range"] = f"bytes={offset}-{end}"
    return headers


def _body(response: aiohttp.ClientResponse, offset: int, stall: float) -> Body:
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", ""):
        if response.status != 200 or not encodings.known(encoding):
            raise Unknown(f"GET {response.url.path}: was asked for plain, came as {encoding}")
        return Body(response, 0, -1, encoding, stall)
    length = response.content_length
    size = -1 if length is None else length
    if response.status == 200:
        return Body(response, 0, size, stall=stall)
    begin = response.headers.get("Content-Range", "").partition(" ")[2].partition("-")[0]
    if begin != str(offset):
        raise Unknown(f"GET {response.url.path}: was asked for byte {offset}, sent from {begin!r}")
    return Body(response, offset, size, stall=stall)


def _described(response: aiohttp.ClientResponse, reference: Reference) -> Descriptor | None:
    digest = reference.digest or response.headers.get(_DIGEST_HEADER, "")
    size = response.headers.get("Content-Length", "")
    if not digest or not size.isdecimal() or not int(size):
        return (
            None  # some servers say of a HEAD that it has no body, instead of what GET would have
        )
    if not is_digest(digest):
        raise Unknown(f"{reference}: the registry calls it {digest[:200]!r}, which is no digest")
    return Descriptor(_media_type(response), digest, int(size))


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip() or media.UNKNOWN
