"""The native snapshotter as a plugin: its id and configuration."""

from __future__ import annotations

from typing import Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.plugins import PluginContext, Registration

from .snapshotter import NativeSnapshotter


async def _start(context: PluginContext) -> Any:
    root = root_of(context)
    take(context, root)
    snapshotter = await NativeSnapshotter.open(root)
    context.on_close(snapshotter.close)
    return snapshotter


NATIVE = Registration(
    SNAPSHOTTER,
    "native",
    _start,
    config={"root_path": ""},
    config_help={"root_path": ROOT_PATH_HELP},
)
