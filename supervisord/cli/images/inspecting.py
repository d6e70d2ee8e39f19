"""``sctl images inspect``: all that is known of an image for one platform, as JSON."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..arguments import Noun, snapshotter_flag
from ..connection import Connection, connect
from ..output import moment, show_json

if TYPE_CHECKING:
    from . import manifests


def register(noun: Noun) -> None:
    """Declares the verb."""
    verb = noun.verb(
        "inspect", inspect, "show an image's manifest, config, layers and sizes as JSON",
        note="unpacked says whether its layers are in the snapshotter; here, whether a blob is.",
    )  # fmt: skip
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--platform", metavar="OS/ARCH")
    snapshotter_flag(verb)


def inspect(args: argparse.Namespace) -> None:
    """Prints an image's record, manifest, layers and config."""
    from . import blobs, manifests, media
    from .unpack import is_unpacked

    wanted = media.parse_platform(args.platform) if args.platform else media.here()
    with connect(args) as daemon:
        image = manifests.get_image(daemon, args.image)
        target = manifests.target_of(image)
        manifest = manifests.select(daemon, target, wanted)
        config = blobs.read_json(daemon, manifest.config.digest)
        layers = _layers(daemon, manifest, config)
        chain = [layer["chainId"] for layer in layers if "chainId" in layer]
        snapshotter = daemon.snapshotter(args.snapshotter)
        unpacked = {snapshotter: is_unpacked(daemon, chain, snapshotter)} if chain else {}
        platform = manifests.platform_of(daemon, manifest.target)
    blob_sizes = (item.size for item in (manifest.target, manifest.config, *manifest.layers))
    show_json(
        {
            "name": image.name,
            "labels": dict(image.labels),
            "created_at": moment(image.created_at),
            "updated_at": moment(image.updated_at),
            "platform": str(platform) if platform else "",
            "size": sum(blob_sizes),
            "target": target.to_json(),
            "manifest": manifest.target.to_json(),
            "chain_id": chain[-1] if chain else "",
            "unpacked": unpacked,
            "layers": layers,
            "config": config,
        }
    )


def _layers(
    daemon: Connection, manifest: manifests.Manifest, config: dict[str, Any]
) -> list[dict[str, Any]]:
    """Descriptors, and for an image the ids that its config gives them."""
    from . import blobs, media
    from .manifests import diff_ids
    from .unpack import chain_of

    layers: list[dict[str, Any]] = [
        {**layer.to_json(), "here": blobs.exists(daemon, layer.digest)} for layer in manifest.layers
    ]
    if manifest.config.media_type in media.CONFIG_TYPES:
        ids = diff_ids(config, manifest.config.digest)
        for layer, diff_id, chain_id in zip(layers, ids, chain_of(daemon, manifest), strict=True):
            layer |= {"diffId": diff_id, "chainId": chain_id}
    return layers
