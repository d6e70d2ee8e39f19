"""``sctl images tree``: what an image consists of, and what of it is here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..arguments import Noun
from ..connection import Connection, connect
from ..output import human_bytes, show, show_json
from . import blobs, manifests
from .media import CONFIG_TYPES, Descriptor


def register(noun: Noun) -> None:
    """Declares the verb."""
    verb = noun.verb("tree", tree, "show an image's manifests, configs and layers")
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--json", action="store_true", help="as JSON")


def tree(args: argparse.Namespace) -> None:
    """Prints the tree."""
    with connect(args) as daemon:
        image = manifests.get_image(daemon, args.image)
        node = _node(daemon, manifests.target_of(image))
    if args.json:
        show_json({"name": image.name, **node})
        return
    show(image.name)
    for line in _lines(node, "", last=True):
        show(line)


def _node(daemon: Connection, target: Descriptor) -> dict[str, Any]:
    here = blobs.exists(daemon, target.digest)
    children = manifests.children(daemon, target) if here else []
    return {
        "kind": _kind(target),
        "digest": target.digest,
        "size": target.size,
        "platform": str(target.platform) if target.platform else "",
        "here": here,
        "children": [_node(daemon, child) for child in children],
    }


def _kind(target: Descriptor) -> str:
    if target.is_index:
        return "index"
    if target.is_manifest:
        return "manifest"
    if target.is_layer:
        return "layer"
    return "config" if target.media_type in CONFIG_TYPES else target.media_type


def _lines(node: dict[str, Any], indent: str, *, last: bool) -> Iterator[str]:
    digest = node["digest"].partition(":")[2][:12]
    words = [node["kind"], digest, human_bytes(node["size"]), node["platform"]]
    if not node["here"]:
        words.append("(not here)")
    yield f"{indent}{'└── ' if last else '├── '}{' '.join(filter(None, words))}"
    below = indent + ("    " if last else "│   ")
    for child in node["children"]:
        yield from _lines(child, below, last=child is node["children"][-1])
