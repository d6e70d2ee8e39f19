"""The overlayfs snapshotter as a plugin: its id and configuration."""

from __future__ import annotations

import asyncio
from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin

from .probe import supported
from .snapshotter import OverlaySnapshotter


async def _start(context: PluginContext) -> Any:
    config = context.config
    if not await asyncio.to_thread(supported):
        raise SkipPlugin("the kernel knows no overlayfs")
    root = root_of(context)
    take(context, root)
    snapshotter = await OverlaySnapshotter.open(
        root,
        mount_options=config["mount_options"],
        sync_remove=config["sync_remove"],
        upperdir_label=config["upperdir_label"],
    )
    context.on_close(snapshotter.close)
    context.capability("rebase")
    return snapshotter


OVERLAYFS = Registration(
    SNAPSHOTTER,
    "overlayfs",
    _start,
    config={
        "root_path": "",
        "upperdir_label": False,
        "sync_remove": False,
        "mount_options": [],
    },
    config_help={
        "root_path": ROOT_PATH_HELP,
        "upperdir_label": "Whether snapshots tell their folder in a label.",
        "sync_remove": "Whether a removed snapshot is gone from the disk when the call ends.",
        "mount_options": "Further options of every overlay mount.",
    },
)
