"""Export: images of the store as one tar, an OCI image layout that ``docker load`` reads as well.

Members are in the order of their names and have no times, so that the same images make the same
archive. Everything is looked up before the first byte is written.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import DataLoss, InvalidArgument, NotFound
from supervisord.contracts.images import Image
from supervisord.contracts.scope import Scope

from ..ends import Export
from ..oci import media
from ..oci.documents import Descriptor
from ..oci.names import SOURCE, familiar, tag_of
from ..oci.platforms import here
from ..selection import Selection
from ..tree import Tree

NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_PIECE = 1 << 20
_END = b"\0" * 1024


@dataclass(slots=True)
class _Contents:
    """What goes into the archive: blobs by digest, entries of the index, and for docker each
    manifest with its names."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    entries: list[Descriptor] = field(default_factory=list)
    docker: dict[str, tuple[Descriptor, list[str]]] = field(default_factory=dict)


class Exporter:
    """Writes archives."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def export(self, scope: Scope, images: Sequence[Image], target: Export) -> None:
        """Raises NotFound (a blob, a manifest for the platforms), InvalidArgument (something that
        is no image), DataLoss (a damaged blob), and what the sink raises."""
        tree = Tree(self._content, scope)
        contents = _Contents()
        for image in images:
            await self._add(scope, tree, image, target, contents)
        await _Writer(self._content, scope, target).write(tree, contents)

    async def _add(
        self, scope: Scope, tree: Tree, image: Image, target: Export, contents: _Contents
    ) -> None:
        """One image: its entry, its blobs, and its manifest for docker."""
        info = await self._content.info(scope, image.target.digest)
        annotations = {
            **image.target.annotations,
            **{key: value for key, value in info.labels.items() if key.startswith(SOURCE)},
            NAME: image.name,
            REF: tag_of(image.name),
        }
        top = Descriptor(
            image.target.media_type,
            image.target.digest,
            image.target.size,
            annotations=annotations,
        )
        contents.entries.append(top)
        if top.is_manifest:
            await self._take(tree, top, target, contents)
            best = top
        elif top.is_index:
            contents.blobs[top.digest] = top
            selection = Selection(target.platforms or [here()])
            manifests = await tree.children(top)
            chosen = selection.of(manifests)
            if not chosen:
                names = ", ".join(map(str, selection.platforms))
                raise NotFound(f"image {image.name}: no manifest found for platform {names}")
            for one in manifests if target.all_platforms else chosen:
                await self._take(tree, one, target, contents)
            best = chosen[0]
        else:
            raise InvalidArgument(f"image {image.name}: only manifests may be exported")
        if best.is_manifest:
            contents.docker.setdefault(best.digest, (best, []))[1].append(image.name)

    async def _take(
        self, tree: Tree, target: Descriptor, export: Export, contents: _Contents
    ) -> None:
        """A blob and all below it."""
        if export.skip_nondistributable and media.is_nondistributable(target.media_type):
            return
        if target.digest in contents.blobs:
            return
        contents.blobs[target.digest] = target
        for child in await tree.children(target):
            await self._take(tree, child, export, contents)


class _Writer:
    """One archive."""

    def __init__(self, content: ContentStore, scope: Scope, target: Export) -> None:
        self._content = content
        self._scope = scope
        self._target = target

    async def write(self, tree: Tree, contents: _Contents) -> None:
        for descriptor in contents.blobs.values():
            info = await self._content.info(self._scope, descriptor.digest)
            if info.size != descriptor.size:
                raise DataLoss(f"{descriptor.digest}: has {info.size} bytes, not {descriptor.size}")
        docker = b""
        if not self._target.skip_manifest_json and contents.docker:
            docker = await _manifest_json(tree, contents)
        folders = {f"blobs/{digest.partition(':')[0]}/" for digest in contents.blobs}
        for name in sorted({"blobs/", *folders}):
            await self._put(_header(name, 0, folder=True))
        for digest in sorted(contents.blobs):
            await self._blob(contents.blobs[digest])
        await self._file("index.json", _index(contents.entries))
        if docker:
            await self._file("manifest.json", docker)
        await self._file("oci-layout", _LAYOUT)
        await self._put(_END)

    async def _file(self, name: str, data: bytes) -> None:
        await self._put(_header(name, len(data)) + data + b"\0" * (-len(data) % 512))

    async def _blob(self, descriptor: Descriptor) -> None:
        await self._put(_header(_path(descriptor), descriptor.size))
        hashed = hashlib.new(descriptor.digest.partition(":")[0])
        reader = await self._content.reader(self._scope, descriptor.digest)
        try:
            offset = 0
            while piece := await reader.read(offset, _PIECE):
                hashed.update(piece)
                offset += len(piece)
                await self._put(piece)
        finally:
            reader.close()
        if offset != descriptor.size or not descriptor.digest.endswith(hashed.hexdigest()):
            raise DataLoss(f"blob {descriptor.digest}: is damaged: its digest does not match")
        await self._put(b"\0" * (-offset % 512))

    async def _put(self, data: bytes) -> None:
        if data:
            await self._target.sink.write(data)


def _path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.replace(':', '/')}"


def _header(name: str, size: int, *, folder: bool = False) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o755 if folder else 0o444
    entry.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return entry.tobuf(tarfile.GNU_FORMAT)


def _index(entries: Sequence[Descriptor]) -> bytes:
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": media.INDEX,
            "manifests": [msgspec.to_builtins(entry) for entry in entries],
        }
    )


async def _manifest_json(tree: Tree, contents: _Contents) -> bytes:
    """docker's list of images."""
    listed: list[dict[str, Any]] = []
    for target, names in contents.docker.values():
        manifest = await tree.manifest(target)
        listed.append(
            {
                "Config": _path(manifest.config),
                "RepoTags": [familiar(name) for name in names if "@" not in name] or None,
                "Layers": [_path(layer) for layer in manifest.layers or ()],
            }
        )
    return msgspec.json.encode(listed)
