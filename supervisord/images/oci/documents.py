"""Descriptors, manifests, indexes and configs: read with limits, checked before use.

What is checked is what would mislead us: sizes, digests, types of fields, a manifest that is an
index under another name (CVE-2021-41190), layers and diff-ids that do not pair. Fields that we do
not know are kept by the blob itself, which is never written anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from supervisord.contracts.errors import InvalidArgument

from ..reference import is_digest
from . import media, platforms
from .platforms import Platform

LARGEST_MANIFEST = 4 << 20
LARGEST_CONFIG = 16 << 20
_MOST_CHILDREN = 10_000
_LARGEST_BLOB = 1 << 50


class PlatformField(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a document says about a blob; ``size`` in bytes. ``data`` is the blob itself, where it
    is so small that the document has it (image-spec: descriptor, Embedded Content)."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: PlatformField | None = None
    artifact_type: str = ""
    data: bytes | None = None

    @property
    def is_index(self) -> bool:
        return self.media_type in media.INDEXES

    @property
    def is_manifest(self) -> bool:
        return self.media_type in media.MANIFESTS

    @property
    def target(self) -> Platform | None:
        """The platform it is for, where it says so."""
        told = self.platform
        if told is None or not told.architecture:
            return None
        return platforms.normal(told.os, told.architecture, told.variant, told.os_version)


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """Manifests, most often of one image for several platforms."""

    manifests: tuple[Descriptor, ...] | None = None
    media_type: str = ""
    schema_version: int = 2
    annotations: dict[str, str] | None = None
    config: Any = None
    layers: Any = None
    subject: Descriptor | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image: its config, and its layers from the lowest up."""

    config: Descriptor
    layers: tuple[Descriptor, ...] | None = None
    media_type: str = ""
    schema_version: int = 2
    annotations: dict[str, str] | None = None
    manifests: Any = None
    fs_layers: Any = None
    subject: Descriptor | None = None
    artifact_type: str = ""


class _RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: tuple[str, ...] | None = None


class Config(msgspec.Struct, frozen=True):
    """What of an image's config concerns whoever unpacks it."""

    rootfs: _RootFs = _RootFs()
    os: str = ""
    architecture: str = ""
    variant: str = ""

    @property
    def diff_ids(self) -> Sequence[str]:
        return self.rootfs.diff_ids or ()

    @property
    def platform(self) -> Platform | None:
        if not self.os or not self.architecture:
            return None
        return platforms.normal(self.os, self.architecture, self.variant)


class _Shape(msgspec.Struct, frozen=True, rename="camel"):
    """What tells documents apart."""

    media_type: str = ""
    schema_version: int = 2
    config: Any = None
    manifests: Any = None
    fs_layers: Any = None


_T = TypeVar("_T")

_INDEX = msgspec.json.Decoder(Index)
_MANIFEST = msgspec.json.Decoder(Manifest)
_CONFIG = msgspec.json.Decoder(Config)
_SHAPE = msgspec.json.Decoder(_Shape)


def index(data: bytes, digest: str) -> Index:
    """Raises InvalidArgument, which names the document and the field."""
    found = _decode(_INDEX, data, f"index {digest}")
    if found.config is not None or found.layers is not None:
        raise InvalidArgument(f"index {digest}: has the config or layers of a manifest as well")
    if found.media_type and found.media_type not in media.INDEXES:
        raise InvalidArgument(f"index {digest}: mediaType {found.media_type!r} is not an index's")
    _check(found.manifests or (), f"index {digest}: manifests")
    return found


def manifest(data: bytes, digest: str) -> Manifest:
    """Raises InvalidArgument, which names the document and the field."""
    found = _decode(_MANIFEST, data, f"manifest {digest}")
    if found.manifests is not None or found.fs_layers is not None:
        raise InvalidArgument(
            f"manifest {digest}: has what an index or an old manifest has as well"
        )
    if found.media_type and found.media_type not in media.MANIFESTS:
        raise InvalidArgument(
            f"manifest {digest}: mediaType {found.media_type!r} is not a manifest's"
        )
    _check((found.config,), f"manifest {digest}: config")
    _check(found.layers or (), f"manifest {digest}: layers")
    return found


def config(data: bytes, digest: str) -> Config:
    """Raises InvalidArgument, which names the document and the field."""
    found = _decode(_CONFIG, data, f"config {digest}")
    if len(found.diff_ids) > _MOST_CHILDREN:
        raise InvalidArgument(f"config {digest}: rootfs.diff_ids: more than {_MOST_CHILDREN}")
    for number, id in enumerate(found.diff_ids):
        if not is_digest(id):
            raise InvalidArgument(
                f"config {digest}: rootfs.diff_ids[{number}]: {id!r} is no digest"
            )
    return found


def kind(data: bytes) -> str:
    """The media type of a document that came without one: what it says itself, else what its shape
    says. "" for what is none."""
    try:
        found = _SHAPE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    known = media.INDEXES | media.MANIFESTS | media.SCHEMA1
    if found.media_type in known:
        return found.media_type
    if found.schema_version == 1 and found.fs_layers is not None:
        return media.DOCKER_SCHEMA1
    if found.manifests is not None:
        return media.INDEX
    return media.MANIFEST if found.config is not None else ""


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes, what: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{what}: {error}") from error


def _check(descriptors: Sequence[Descriptor], where: str) -> None:
    if len(descriptors) > _MOST_CHILDREN:
        raise InvalidArgument(f"{where}: more than {_MOST_CHILDREN}")
    for number, one in enumerate(descriptors):
        if not is_digest(one.digest):
            raise InvalidArgument(f"{where}[{number}]: {one.digest[:100]!r} is no digest")
        if not 0 <= one.size <= _LARGEST_BLOB:
            raise InvalidArgument(f"{where}[{number}]: size {one.size} is not one of a blob")
        if one.data is not None and not _is(one.data, one):
            raise InvalidArgument(f"{where}[{number}]: data is not what digest and size say")


def _is(data: bytes, described: Descriptor) -> bool:
    algorithm, _, text = described.digest.partition(":")
    return len(data) == described.size and hashlib.new(algorithm, data).hexdigest() == text
