"""The btrfs snapshotter as a plugin: its id and configuration."""

from __future__ import annotations

from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of
from supervisord.contracts.errors import FailedPrecondition
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin

from .snapshotter import BtrfsSnapshotter


async def _start(context: PluginContext) -> Any:
    try:
        snapshotter = await BtrfsSnapshotter.open(root_of(context))
    except FailedPrecondition as error:
        raise SkipPlugin(str(error)) from error
    context.on_close(snapshotter.close)
    return snapshotter


BTRFS = Registration(
    SNAPSHOTTER,
    "btrfs",
    _start,
    config={"root_path": ""},
    config_help={"root_path": ROOT_PATH_HELP},
)
