"""The btrfs snapshotter as a plugin: its id and configuration."""

from __future__ import annotations

from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.errors import FailedPrecondition
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin

from .snapshotter import BtrfsSnapshotter


async def _start(context: PluginContext) -> Any:
    root = root_of(context)
    try:
        snapshotter = await BtrfsSnapshotter.open(root)
    except FailedPrecondition as error:
        raise SkipPlugin(str(error)) from error
    context.on_close(snapshotter.close)
    take(context, root)
    return snapshotter


BTRFS = Registration(
    SNAPSHOTTER,
    "btrfs",
    _start,
    config={"root_path": ""},
    config_help={"root_path": ROOT_PATH_HELP},
)
