"""The tree of an image: index, manifests, config, layers, and the labels that hold it together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..connection import Connection
from ..errors import CliError
from . import blobs
from .media import CONFIG_TYPES, Descriptor, Platform, check_digest, descriptor_of
from .records import get_image as get_image

if TYPE_CHECKING:
    from protos.containerd.services.images.v1 import images_pb2


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image: its descriptor, config and layers (bottom first)."""

    target: Descriptor
    config: Descriptor
    layers: Sequence[Descriptor]


def target_of(image: images_pb2.Image) -> Descriptor:
    """The descriptor an image's name points at."""
    target = image.target
    return Descriptor(target.media_type, target.digest, target.size, dict(target.annotations))


def children(daemon: Connection, target: Descriptor) -> list[Descriptor]:
    """What an index or a manifest refers to; nothing for other blobs."""
    if target.is_index:
        value = blobs.read_json(daemon, target.digest)
        return _list(value, "manifests", target.digest)
    if target.is_manifest:
        manifest = parse_manifest(blobs.read_json(daemon, target.digest), target)
        return [manifest.config, *manifest.layers]
    return []


def parse_manifest(value: dict[str, Any], target: Descriptor) -> Manifest:
    """A manifest from untrusted JSON. Raises CliError."""
    if "manifests" in value:
        raise CliError(f"blob {target.digest} is an index, not a manifest")
    config = descriptor_of(value.get("config"), f"config of {target.digest}")
    return Manifest(target, config, _list(value, "layers", target.digest))


def _list(value: dict[str, Any], name: str, digest: str) -> list[Descriptor]:
    items = value.get(name) or []
    if not isinstance(items, list):
        raise CliError(f"blob {digest}: {name} is not a list")
    return [descriptor_of(item, f"{name}[{index}] of {digest}") for index, item in enumerate(items)]


def platform_of(daemon: Connection, target: Descriptor) -> Platform | None:
    """The platform of a manifest: what its index says, else what its config says."""
    if target.platform is not None:
        return target.platform
    manifest = parse_manifest(blobs.read_json(daemon, target.digest), target)
    if manifest.config.media_type not in CONFIG_TYPES:
        return None
    config = blobs.read_json(daemon, manifest.config.digest)
    os, architecture, variant = (
        config.get(name) or "" for name in ("os", "architecture", "variant")
    )
    return Platform(os, architecture, variant) if os and architecture else None


def manifests(daemon: Connection, target: Descriptor) -> Iterator[Descriptor]:
    """All manifests below a target, whether or not their blobs are here."""
    if target.is_manifest:
        yield target
    elif target.is_index:
        for child in children(daemon, target):
            if child.is_index and not blobs.exists(daemon, child.digest):
                continue
            yield from manifests(daemon, child)


def select(daemon: Connection, target: Descriptor, wanted: Platform) -> Manifest:
    """The manifest for a platform. Raises CliError naming the platforms that there are."""
    offered = []
    for candidate in manifests(daemon, target):
        if not blobs.exists(daemon, candidate.digest):
            continue
        platform = platform_of(daemon, candidate)
        if platform is None or platform.matches(wanted):
            return parse_manifest(blobs.read_json(daemon, candidate.digest), candidate)
        offered.append(str(platform))
    found = f"; it has {', '.join(offered)}" if offered else ""
    raise CliError(f"{target.digest} has no manifest for platform {wanted} here{found}")


def diff_ids(config: dict[str, Any], digest: str) -> list[str]:
    """The digests of the uncompressed layers, from an image config. Raises CliError."""
    rootfs = config.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list):
        raise CliError(f"image config {digest} has no rootfs.diff_ids")
    return [check_digest(item, f"diff_ids of {digest}") for item in ids]


def chain_ids(ids: Sequence[str]) -> list[str]:
    """The names of the snapshots of each layer on top of those below (OCI image spec)."""
    chain: list[str] = []
    for item in ids:
        if chain:
            item = "sha256:" + hashlib.sha256(f"{chain[-1]} {item}".encode()).hexdigest()
        chain.append(item)
    return chain


def hold_children(
    daemon: Connection, target: Descriptor, platforms: Sequence[Platform] | None
) -> None:
    """Labels every index and manifest with what it refers to, so that garbage collection keeps
    it. With ``platforms``, manifests for others are left to be collected."""
    held: dict[str, str] = {}
    wanted: list[Descriptor] = []
    counts: dict[str, int] = {}
    for child in children(daemon, target):
        if (
            platforms is not None
            and child.platform is not None
            and (child.is_manifest or child.is_index)
            and not any(child.platform.matches(item) for item in platforms)
        ):
            continue  # fmt: skip
        wanted.append(child)
        key = _key(child)
        number = counts.get(key, 0)
        counts[key] = number + 1
        held[f"{key}{number}" if key.endswith(".") or number else key] = child.digest
    if held:
        blobs.label(daemon, target.digest, held)
    for child in wanted:
        if child.is_index or child.is_manifest:
            hold_children(daemon, child, platforms)


def _key(child: Descriptor) -> str:
    prefix = "containerd.io/gc.ref.content."
    if child.is_index or child.is_manifest:
        return prefix + "m."
    if child.is_layer:
        return prefix + "l."
    if child.media_type in CONFIG_TYPES:
        return prefix + "config"
    return prefix
