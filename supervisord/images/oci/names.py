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
