"""Import: an archive's blobs into the store, and an index of the images in it.

An OCI layout brings its index; for docker's ``save`` format manifests and an index are made. Blobs
are checked against the names that a layout gives them, and written under refs of the import alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from isal import igzip_lib, isal_zlib

from supervisord.contracts.content import ContentStore, Writer
from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.scope import Scope

from .. import reference
from ..holding import held
from ..oci import documents, media
from ..oci.documents import LARGEST_CONFIG, Descriptor
from ..oci.names import UNCOMPRESSED, full, tag_of
from ..reference import is_digest
from .exporting import NAME, REF
from .plain import plain
from .tarstream import TarStream

_LARGEST_JSON = 20 << 20
_MOST_BLOBS = 100_000
_PIECE = 1 << 20


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in docker's ``manifest.json``."""

    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


_SAVED = msgspec.json.Decoder(tuple[_Saved, ...])
_LAYOUT = msgspec.json.Decoder(_Layout)


class Importer:
    """Reads archives."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    async def load(
        self, scope: Scope, data: AsyncIterator[bytes], *, compress: bool = False
    ) -> Descriptor:
        """The index of what the archive has. ``compress`` packs layers of docker's format that
        are not. Raises InvalidArgument (what is no archive, or is damaged), and what the store
        raises."""
        archive = _Archive(self._store, scope, TarStream(plain(data)))
        await archive.read()
        return await archive.index(compress=compress)


class _Archive:
    """One import."""

    def __init__(self, store: ContentStore, scope: Scope, tar: TarStream) -> None:
        self._store = store
        self._scope = scope
        self._tar = tar
        self._tag = secrets.token_hex(8)
        self._blobs: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}

    async def read(self) -> None:
        """Takes in all members."""
        while (entry := await self._tar.next()) is not None:
            name = posixpath.normpath(entry.name).lstrip("/")
            if len(self._blobs) + len(self._links) >= _MOST_BLOBS:
                raise InvalidArgument(f"archive: more than {_MOST_BLOBS} members")
            if entry.kind == "symlink":
                target = posixpath.join(posixpath.dirname(name), entry.link)
                self._links[name] = posixpath.normpath(target)
            elif entry.kind == "hardlink":
                self._links[name] = posixpath.normpath(entry.link).lstrip("/")
            elif entry.kind == "file" and name in ("oci-layout", "manifest.json"):
                self._documents[name] = await self._whole(name, entry.size)
            elif entry.kind == "file":
                self._blobs[name] = await self._ingested(name, entry.size)
        await self._tar.drain()

    async def index(self, *, compress: bool) -> Descriptor:
        """Raises InvalidArgument."""
        if "oci-layout" in self._documents:
            version = _decoded(_LAYOUT, self._documents["oci-layout"], "oci-layout")
            if version.image_layout_version != "1.0.0":
                raise InvalidArgument(
                    f"archive: OCI layout {version.image_layout_version[:40]!r} is not supported"
                )
            found = self._blobs.get("index.json")
            if found is None:
                raise InvalidArgument("archive: its OCI layout has no index.json")
            return Descriptor(media.INDEX, found.digest, found.size)
        if "manifest.json" not in self._documents:
            raise InvalidArgument(
                "archive: unrecognized image format: it has neither oci-layout nor manifest.json"
            )
        return await self._of_docker(compress=compress)

    # Blobs ----------------------------------------------------------------------------------

    async def _whole(self, name: str, size: int) -> bytes:
        if size > _LARGEST_JSON:
            raise InvalidArgument(f"archive: {name} has {size} bytes, more than {_LARGEST_JSON}")
        return b"".join([piece async for piece in self._tar.body()])

    async def _ingested(self, name: str, size: int) -> Descriptor:
        """The blob of a member, under the digest that its name says where it does."""
        told = _told(name)
        if told and await self._has(told, size):
            hashed = hashlib.new(told.partition(":")[0])
            async for piece in self._tar.body():
                await asyncio.to_thread(hashed.update, piece)
            digest = f"{hashed.name}:{hashed.hexdigest()}"
        else:
            digest = await self._written(f"tar-{self._tag}-{name}", self._tar.body(), told)
        if told not in ("", digest):
            raise InvalidArgument(f"archive: {name} has other bytes than its name says: {digest}")
        return Descriptor("", digest, size)

    async def _has(self, digest: str, size: int) -> bool:
        try:
            if (await self._store.info(self._scope, digest)).size != size:
                return False
        except NotFound:
            return False
        ref = f"held-{self._tag}-{digest}"
        return await held(self._store, self._scope, ref, digest, size)

    async def _written(
        self,
        ref: str,
        pieces: AsyncIterator[bytes],
        told: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """The digest of what was written; nothing of it stays when it is not ``told``."""
        async with AsyncExitStack() as undo:
            # Without ``expected``: a namespace that has it would hand it over unread.
            writer = await self._store.writer(self._scope, ref)
            undo.push_async_callback(self._dropped, writer, ref)
            async for piece in pieces:
                await writer.write(piece)
            digest = writer.digest()
            if told and told.partition(":")[0] == "sha256" and told != digest:
                return digest
            try:
                info = await writer.commit(0, told or digest, labels or {})
            except AlreadyExists:
                return told or digest
            return info.digest

    async def _dropped(self, writer: Writer, ref: str) -> None:
        await writer.close()
        try:
            await self._store.abort(self._scope, ref)
        except NotFound:
            return  # it was committed

    async def _made(self, value: Any, kind: str) -> Descriptor:
        """A document of our own."""
        data = msgspec.json.encode(value)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not await self._has(digest, len(data)):
            await self._written(f"made-{self._tag}-{digest}", _once(data))
        return Descriptor(kind, digest, len(data))

    # docker's format ------------------------------------------------------------------------

    async def _of_docker(self, *, compress: bool) -> Descriptor:
        saved = _decoded(_SAVED, self._documents["manifest.json"], "manifest.json")
        manifests: list[dict[str, Any]] = []
        for image in saved:
            config = self._named(image.config, "image config")
            layers = [
                await self._layer(self._named(name, "layer"), compress=compress)
                for name in image.layers or ()
            ]
            manifest = await self._made(
                {
                    "schemaVersion": 2,
                    "mediaType": media.DOCKER_MANIFEST,
                    "config": _plain(config, media.DOCKER_CONFIG),
                    "layers": [_plain(layer, layer.media_type) for layer in layers],
                },
                media.DOCKER_MANIFEST,
            )
            entry = _plain(manifest, media.DOCKER_MANIFEST)
            platform = await self._platform(config)
            if platform:
                entry["platform"] = platform
            names = [str(reference.parse(full(tag))) for tag in image.repo_tags or ()]
            manifests += [
                {**entry, "annotations": {NAME: name, REF: tag_of(name)}} for name in names
            ] or [entry]
        return await self._made(
            {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": manifests}, media.INDEX
        )

    def _named(self, name: str, what: str) -> Descriptor:
        path = posixpath.normpath(name)
        for _ in range(8):  # links to links
            if path in self._blobs:
                return self._blobs[path]
            path = self._links.get(path, "")
        raise InvalidArgument(f"archive: {what} {name[:200]!r} is not in it")

    async def _layer(self, blob: Descriptor, *, compress: bool) -> Descriptor:
        """With the media type that its first bytes say; one that is here in its compressed form
        is that one."""
        query = f'labels."{UNCOMPRESSED}"=={blob.digest}'
        async for info in self._store.walk(self._scope, [query]):
            return await self._typed(Descriptor("", info.digest, info.size))
        typed = await self._typed(blob)
        if not compress or typed.media_type != media.DOCKER_LAYER:
            return typed
        ref = f"compress-{self._tag}-{blob.digest}"
        digest = await self._written(
            ref, self._compressed(blob), labels={UNCOMPRESSED: blob.digest}
        )
        info = await self._store.info(self._scope, digest)
        return Descriptor(f"{media.DOCKER_LAYER}.gzip", digest, info.size)

    async def _typed(self, blob: Descriptor) -> Descriptor:
        reader = await self._store.reader(self._scope, blob.digest)
        try:
            first = await reader.read(0, 4)
        finally:
            reader.close()
        packed = first.startswith(b"\x1f\x8b") or first == b"\x28\xb5\x2f\xfd"
        kind = f"{media.DOCKER_LAYER}.gzip" if packed else media.DOCKER_LAYER
        return Descriptor(kind, blob.digest, blob.size)

    async def _compressed(self, blob: Descriptor) -> AsyncIterator[bytes]:
        packer = isal_zlib.compressobj(igzip_lib.ISAL_DEFAULT_COMPRESSION, wbits=31)
        reader = await self._store.reader(self._scope, blob.digest)
        try:
            offset = 0
            while piece := await reader.read(offset, _PIECE):
                offset += len(piece)
                packed = await asyncio.to_thread(packer.compress, piece)
                if packed:
                    yield packed
        finally:
            reader.close()
        yield packer.flush()

    async def _platform(self, config: Descriptor) -> Mapping[str, str]:
        data = await self._store.read_blob(self._scope, config.digest, LARGEST_CONFIG)
        platform = documents.config(data, config.digest).platform
        if platform is None:
            return {}
        found = {"os": platform.os, "architecture": platform.architecture}
        return {**found, "variant": platform.variant} if platform.variant else found


def _told(name: str) -> str:
    """The digest that a member's name says, "" for none."""
    parts = name.split("/")
    digest = ":".join(parts[1:]) if parts[0] == "blobs" and len(parts) == 3 else ""
    return digest if is_digest(digest) else ""


def _plain(blob: Descriptor, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size}


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes, name: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"archive: {name}: {error}") from error
