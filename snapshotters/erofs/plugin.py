"""The erofs snapshotter as a plugin: its id and configuration."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin
from supervisord.contracts.sizes import in_bytes

from .image import MKFS
from .probe import supported
from .snapshotter import ErofsSnapshotter, Settings


async def _start(context: PluginContext) -> Any:
    config = context.config
    if not await asyncio.to_thread(supported):
        raise SkipPlugin("the kernel knows no erofs")
    if shutil.which(MKFS) is None:
        raise SkipPlugin(f"{MKFS} (of erofs-utils) is not installed")
    if config["dmverity_mode"] not in ("auto", "off"):
        raise InvalidArgument("dmverity_mode: must be auto or off: dm-verity is not supported")
    size = config["default_size"]
    settings = Settings(
        mount_options=config["ovl_mount_options"],
        size=in_bytes(size, "default_size") if size else 0,
        immutable=config["set_immutable"],
        verity=config["enable_fsverity"],
        mount_layers=config["mount_layers"],
        mkfs_options=config["mkfs_options"],
    )
    root = root_of(context)
    take(context, root)
    snapshotter = await ErofsSnapshotter.open(root, settings)
    context.on_close(snapshotter.close)
    context.capability("only-remap-ids")
    if snapshotter.remaps_ids:
        context.capability("remap-ids")
    if not settings.size:  # whiteouts become marks in a folder of the disk only
        context.capability("rebase")
    return snapshotter


EROFS = Registration(
    SNAPSHOTTER,
    "erofs",
    _start,
    config={
        "root_path": "",
        "ovl_mount_options": [],
        "enable_fsverity": False,
        "set_immutable": False,
        "default_size": "",
        "mount_layers": True,
        "mkfs_options": [],
        "dmverity_mode": "auto",
    },
    config_help={
        "root_path": ROOT_PATH_HELP,
        "ovl_mount_options": "Further options of every overlay mount.",
        "enable_fsverity": "Whether the kernel checks each block of a layer that is read.",
        "set_immutable": "Whether layers get the attribute that nobody may change them.",
        "default_size": "Size of a writable layer, such as 20GiB; empty for no limit of its own. "
        "Such snapshots are mounted by the mount manager only.",
        "mount_layers": "Whether layers are mounted once for all, so that clients get plain "
        "overlays; false: clients get each image, for the mount manager or a runtime with a kernel "
        "of its own.",
        "mkfs_options": "Further options of mkfs.erofs, such as -zlz4hc.",
        "dmverity_mode": "auto or off: blocks of images are not checked by dm-verity.",
    },
)
