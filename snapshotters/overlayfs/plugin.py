"""The overlayfs snapshotter as a plugin: its id, configuration and capabilities."""

from __future__ import annotations

import asyncio
from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin

from .probe import in_user_namespace, supported
from .snapshotter import OverlaySnapshotter, Settings


async def _start(context: PluginContext) -> Any:
    config = context.config
    if not await asyncio.to_thread(supported):
        raise SkipPlugin("the kernel knows no overlayfs")
    root = root_of(context)
    take(context, root)
    snapshotter = await OverlaySnapshotter.open(
        root,
        Settings(
            mount_options=config["mount_options"],
            sync_remove=config["sync_remove"],
            sync_commit=config["sync_commit"],
            upperdir_label=config["upperdir_label"],
            project_quota=config["project_quota"],
        ),
    )
    context.on_close(snapshotter.close)
    if snapshotter.remaps_ids:
        context.capability("remap-ids")
    if not config["slow_chown"]:
        context.capability("only-remap-ids")
    if not in_user_namespace():  # whiteouts of a layer without its parent are device nodes
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
        "sync_commit": True,
        "slow_chown": False,
        "project_quota": 0,
        "mount_options": [],
    },
    config_help={
        "root_path": ROOT_PATH_HELP,
        "upperdir_label": "Whether snapshots tell their folder in a label.",
        "sync_remove": "Whether a removed snapshot is gone from the disk when the call ends.",
        "sync_commit": "Whether a commit waits until all files are on the disk; false is quicker, "
        "and a power failure soon afterwards may leave files without contents.",
        "slow_chown": "Whether clients may copy an image and change all owners for a container in "
        "a user namespace, where the kernel cannot map owners in mounts.",
        "project_quota": "First of the project ids by which the file system counts what active "
        "snapshots take, where it is mounted with prjquota; 0 walks their folders instead.",
        "mount_options": "Further options of every overlay mount; volatile is left out of views.",
    },
)
