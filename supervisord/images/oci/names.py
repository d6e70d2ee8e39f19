"""Names that are made from descriptors: refs of ingests, and the labels that hold children.

Both are containerd's, so that a client which pulls the same image at the same time, or went away in
the middle of it, finds what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import media
from .documents import Descriptor

_HOLDS = "containerd.io/gc.ref.content"
SOURCE = "containerd.io/distribution.source"
SNAPSHOT = "containerd.io/gc.ref.snapshot"
UNCOMPRESSED = "containerd.io/uncompressed"


def ref_of(descriptor: Descriptor) -> str:
    """Of the ingest that brings it, which is its name in progress reports as well."""
    kind = descriptor.media_type
    if descriptor.is_manifest:
        word = "manifest"
    elif descriptor.is_index:
        word = "index"
    elif media.is_layer(kind):
        word = "layer"
    elif kind in media.CONFIGS:
        word = "config"
    else:
        word = "unknown"
    return f"{word}-{descriptor.digest}"


def holds(children: Sequence[Descriptor]) -> dict[str, str]:
    """The labels of a document that keep its children from garbage collection."""
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in children:
        if child.is_index or child.is_manifest:
            key = f"{_HOLDS}.m."
        elif media.is_layer(child.media_type):
            key = f"{_HOLDS}.l."
        elif child.media_type in media.CONFIGS:
            key = f"{_HOLDS}.config"
        else:
            key = f"{_HOLDS}."
        number = counts.get(key, 0)
        counts[key] = number + 1
        labels[f"{key}{number}" if number or key.endswith(".") else key] = child.digest
    return labels


def tag_of(name: str) -> str:
    """What OCI's layout calls an image: its tag, or its whole name where it has none."""
    if "@" in name:
        return name
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag or name


def familiar(name: str) -> str:
    """What docker calls it: without its own registry's name."""
    short = name.removeprefix("docker.io/")
    return short.removeprefix("library/") if short != name else name


def full(name: str) -> str:
    """The whole name of what docker calls so: ``alpine`` is ``docker.io/library/alpine:latest``."""
    rest, at, digest = name.partition("@")
    domain, slash, path = rest.partition("/")
    if not slash or not (domain == "localhost" or "." in domain or ":" in domain):
        domain, path = "docker.io", rest
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if at:
        return f"{domain}/{path.partition(':')[0]}@{digest}"
    return f"{domain}/{path}" if ":" in path else f"{domain}/{path}:latest"
