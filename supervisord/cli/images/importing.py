"""Import: an image archive streamed into the content store, names made, layers unpacked.

Understands OCI image layouts, and docker's own archives (``docker save``, also the old form whose
layers are links). One pass over the input; what is there already is not sent again. All of it
happens under a lease, and nothing is named before everything that the name needs is here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.types import types_pb2

from ..connection import Connection
from ..errors import CliError, is_code
from . import archive, blobs, manifests, references
from .media import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEX,
    NAME_ANNOTATION,
    REF_ANNOTATION,
    Descriptor,
    Platform,
    check_digest,
    descriptor_of,
)
from .progress import Bars

# Members of docker's old archives that describe its graph and that nobody reads.
_IGNORED = ("/json", "/VERSION")


@dataclass(frozen=True, slots=True)
class Options:
    """How to name and choose: see the flags of ``sctl images import``."""

    base_name: str = ""
    index_name: str = ""
    digests: bool = False
    skip_digest_for_named: bool = False
    platforms: Sequence[Platform] | None = None


@dataclass(slots=True)
class _Contents:
    """What one pass over the archive found; ``files`` maps a member's name to its blob."""

    layout: dict[str, Any] | None = None
    index: bytes | None = None
    docker: list[dict[str, Any]] | None = None
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def import_archive(
    daemon: Connection, raw: BinaryIO, options: Options, bars: Bars
) -> list[tuple[str, Descriptor]]:
    """Imports and answers the names made with what they point at; call it under a lease.

    Raises CliError for an archive that is damaged, hostile, incomplete or of unknown form."""
    with archive.readable():
        contents = _scan(daemon, archive.open_stream(raw), bars)
    index, entries = _index(daemon, contents)
    kept = [entry for entry in entries if _wanted(entry, options.platforms)]
    if not kept:
        raise CliError("the archive has no image for this platform (see --all-platforms)")
    for entry in kept:
        _hold(daemon, entry, options.platforms)
    images = _names(index, entries, options)
    if not images:
        raise CliError("the archive names no image: give it one with --index-name or --digests")
    if options.index_name:
        manifests.hold_children(daemon, index, options.platforms)
    for name, target in images:
        _store(daemon, name, target)
    return images


def _scan(daemon: Connection, stream: BinaryIO, bars: Bars) -> _Contents:
    contents = _Contents()
    for member in archive.members(stream):
        if member.link:
            contents.links[member.name] = member.link
        elif member.data is None or member.name.endswith(_IGNORED):
            continue
        elif member.name == "oci-layout":
            contents.layout = blobs.parse_json(_small(member), "oci-layout")
        elif member.name == "manifest.json":
            contents.docker = _docker_list(_small(member))
        elif member.name == "index.json":
            contents.index = _small(member)
        elif member.name == "repositories":
            continue
        else:
            expected = _digest_of(member.name)
            bars.transfer((expected or member.name)[:26], member.size)
            digest = blobs.upload(
                daemon, member.data, member.size, expected=expected, progress=bars.advance
            )
            contents.files[member.name] = (digest, member.size)
    return contents


def _small(member: archive.Member) -> bytes:
    if member.size > blobs.JSON_LIMIT or member.data is None:
        raise CliError(f"{member.name} in the archive is larger than {blobs.JSON_LIMIT >> 20} MiB")
    return member.data.read()


def _digest_of(name: str) -> str:
    """The digest that the name of a layout's blob promises, "" for other members."""
    parts = name.split("/")
    if parts[0] != "blobs" or len(parts) != 3:
        return ""
    return check_digest(f"{parts[1]}:{parts[2]}", f"archive member {name!r}")


def _docker_list(data: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CliError(f"manifest.json is not JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CliError("manifest.json is not a list of images")
    return value


def _index(daemon: Connection, contents: _Contents) -> tuple[Descriptor, list[Descriptor]]:
    """The index of the archive, stored as a blob, and the images in it."""
    if contents.layout is not None:
        version = contents.layout.get("imageLayoutVersion")
        if version != "1.0.0":
            raise CliError(f"unsupported OCI layout version {version!r}")
        if contents.index is None:
            raise CliError("the OCI layout has no index.json")
        data = contents.index
    elif contents.docker is not None:
        entries = [entry for item in contents.docker for entry in _docker(daemon, item, contents)]
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [entry.to_json() for entry in entries],
        }
        data = json.dumps(index, separators=(",", ":")).encode()
    else:
        raise CliError("neither an OCI layout nor a docker archive: no oci-layout, manifest.json")
    digest = blobs.upload_bytes(daemon, data)
    listed = blobs.parse_json(data, "index.json").get("manifests")
    if not isinstance(listed, list):
        raise CliError("index.json has no list of manifests")
    found = [descriptor_of(item, f"index.json: manifests[{n}]") for n, item in enumerate(listed)]
    return Descriptor(INDEX, digest, len(data)), found


def _docker(daemon: Connection, item: dict[str, Any], contents: _Contents) -> list[Descriptor]:
    """One image of a docker archive: its manifest is written here, once per name."""
    layers = item.get("Layers") or []
    tags = item.get("RepoTags") or []
    for name, value in (("Layers", layers), ("RepoTags", tags)):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise CliError(f"manifest.json: {name} is not a list of text")
    config = _file(contents, item.get("Config"), "Config")
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": Descriptor(DOCKER_CONFIG, *config).to_json(),
        "layers": [_docker_layer(daemon, contents, name).to_json() for name in layers],
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    target = Descriptor(DOCKER_MANIFEST, blobs.upload_bytes(daemon, data), len(data))
    target = replace(target, platform=manifests.platform_of(daemon, target))
    if not tags:
        return [target]
    found = []
    for tag in tags:
        name = references.normalize(tag)
        annotations = {NAME_ANNOTATION: name, REF_ANNOTATION: references.tag_of(name)}
        found.append(replace(target, annotations=annotations))
    return found


def _docker_layer(daemon: Connection, contents: _Contents, name: str) -> Descriptor:
    digest, size = _file(contents, name, "Layers")
    head = b"".join(blobs.chunks(daemon, digest, 0, min(size, 4))) if size else b""
    packed = head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd"
    suffix = ".zstd" if head[:4] == b"\x28\xb5\x2f\xfd" else ".gzip"
    return Descriptor(DOCKER_LAYER + (suffix if packed else ""), digest, size)


def _file(contents: _Contents, name: object, where: str) -> tuple[str, int]:
    """The blob of a member, through links. Raises CliError for a missing one or a loop."""
    if not isinstance(name, str):
        raise CliError(f"manifest.json: {where} is not text")
    path = archive.clean_name(name)
    for _ in range(len(contents.links) + 1):
        if path in contents.files:
            return contents.files[path]
        if path not in contents.links:
            break
        path = contents.links[path]
    raise CliError(f"manifest.json: {where} names {name!r}, which is not in the archive")


def _wanted(entry: Descriptor, platforms: Sequence[Platform] | None) -> bool:
    return (
        platforms is None
        or entry.platform is None
        or any(entry.platform.matches(item) for item in platforms)
    )


def _hold(daemon: Connection, entry: Descriptor, platforms: Sequence[Platform] | None) -> None:
    """Labels the tree of an entry and makes sure that all of it is here."""
    try:
        manifests.hold_children(daemon, entry, platforms)
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            raise CliError(f"the archive is incomplete: a blob of {entry.digest} is missing "
                           "(--platform chooses others)") from None  # fmt: skip
        raise
    for manifest in manifests.manifests(daemon, entry):
        if not _wanted(manifest, platforms):
            continue
        for child in manifests.children(daemon, manifest):
            if not blobs.exists(daemon, child.digest):
                raise CliError(f"the archive is incomplete: it lacks blob {child.digest}")


def _names(
    index: Descriptor, entries: Sequence[Descriptor], options: Options
) -> list[tuple[str, Descriptor]]:
    base = options.base_name or f"import-{datetime.now(UTC):%Y-%m-%d}"
    found: list[tuple[str, Descriptor]] = []
    if options.index_name:
        found.append((options.index_name, index))
    for entry in entries:
        if not _wanted(entry, options.platforms):
            continue
        name = entry.annotations.get(NAME_ANNOTATION, "")
        tag = entry.annotations.get(REF_ANNOTATION, "")
        if not name and tag:
            name = references.from_archive(tag, base, only_base=bool(options.base_name))
        if name:
            found.append((name, entry))
        if options.digests and not (name and options.skip_digest_for_named):
            found.append((f"{base}@{entry.digest}", entry))
    return found


def _store(daemon: Connection, name: str, target: Descriptor) -> None:
    """Makes the name, or points it at the new target."""
    image = images_pb2.Image(
        name=name,
        target=types_pb2.Descriptor(
            media_type=target.media_type,
            digest=target.digest,
            size=target.size,
            annotations=target.annotations,
        ),
    )
    try:
        daemon.images.Update(
            images_pb2.UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target"]))
        )
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise
        daemon.images.Create(images_pb2.CreateImageRequest(image=image))
