"""Export: images as an OCI layout tar, with docker's manifest.json for ``docker load``."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, BinaryIO, cast

from ..connection import Connection
from ..errors import CliError
from . import blobs, manifests, references
from .media import INDEX, NAME_ANNOTATION, REF_ANNOTATION, Descriptor, Platform
from .progress import Bars


class _BlobFile(io.RawIOBase):
    """A blob as a file for tarfile, hashed on its way."""

    def __init__(self, daemon: Connection, blob: Descriptor, bars: Bars) -> None:
        self._chunks = blobs.chunks(daemon, blob.digest)
        self._blob = blob
        self._left = b""
        self._bars = bars
        self._hash = hashlib.new(blob.digest.partition(":")[0])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = next(self._chunks, b"")
            self._hash.update(self._left)
            self._bars.advance(len(self._left))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def check(self) -> None:
        """Raises CliError unless what was read is the whole blob."""
        if self._left or self._hash.hexdigest() != self._blob.hex:
            raise CliError(f"blob {self._blob.digest} is damaged: its digest does not match")


def export(
    daemon: Connection,
    names: Sequence[str],
    target: BinaryIO,
    *,
    platforms: Sequence[Platform] | None,
    docker_manifest: bool,
    bars: Bars,
) -> None:
    """Writes the images to ``target``; ``platforms`` None means all that are here.

    Raises CliError for an unknown image or one without content for the platforms."""
    with tarfile.open(fileobj=cast(IO[bytes], target), mode="w|") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        entries: list[Descriptor] = []
        docker: dict[str, tuple[Descriptor, list[str]]] = {}
        written: set[str] = set()
        for name in names:
            entry = manifests.target_of(manifests.get_image(daemon, name))
            annotations = {
                **entry.annotations,
                NAME_ANNOTATION: name,
                REF_ANNOTATION: references.tag_of(name),
            }
            entries.append(replace(entry, annotations=annotations))
            found = list(_select(daemon, entry, platforms))
            if not found:
                raise CliError(f"image {name} has nothing here for the platform")
            docker.setdefault(found[0].digest, (found[0], []))[1].append(name)
            for blob in _tree(daemon, entry, found):
                if blob.digest not in written:
                    written.add(blob.digest)
                    _add_blob(daemon, archive, blob, bars)
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [entry.to_json() for entry in entries],
        }
        _add(archive, "index.json", _json(index))
        if docker_manifest:
            _add(archive, "manifest.json", _json([
                _docker(daemon, manifest, given) for manifest, given in docker.values()
            ]))  # fmt: skip


def _select(
    daemon: Connection, entry: Descriptor, platforms: Sequence[Platform] | None
) -> Iterator[Descriptor]:
    """The manifests of an image that are wanted and here, the best match first."""
    here = [
        item for item in manifests.manifests(daemon, entry) if blobs.exists(daemon, item.digest)
    ]
    if platforms is None:
        yield from here
        return
    for wanted in platforms:
        for item in here:
            platform = manifests.platform_of(daemon, item)
            if platform is None or platform.matches(wanted):
                yield item


def _tree(
    daemon: Connection, entry: Descriptor, chosen: Sequence[Descriptor]
) -> Iterator[Descriptor]:
    if entry.is_index:
        yield entry
        for child in manifests.children(daemon, entry):
            if child.is_index and blobs.exists(daemon, child.digest):
                yield child
    for manifest in chosen:
        yield manifest
        yield from manifests.children(daemon, manifest)


def _docker(daemon: Connection, target: Descriptor, names: Sequence[str]) -> dict[str, Any]:
    manifest = manifests.parse_manifest(blobs.read_json(daemon, target.digest), target)
    return {
        "Config": _path(manifest.config),
        "RepoTags": [references.familiar(name) for name in names if "@" not in name],
        "Layers": [_path(layer) for layer in manifest.layers],
    }


def _path(blob: Descriptor) -> str:
    return "blobs/" + blob.digest.replace(":", "/")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o444
    archive.addfile(entry, io.BytesIO(data))


def _add_blob(daemon: Connection, archive: tarfile.TarFile, blob: Descriptor, bars: Bars) -> None:
    entry = tarfile.TarInfo(_path(blob))
    entry.size, entry.mode = blob.size, 0o444
    bars.transfer(blob.digest[:26], blob.size)
    file = _BlobFile(daemon, blob, bars)
    archive.addfile(entry, io.BufferedReader(file, blobs.CHUNK))
    file.check()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
