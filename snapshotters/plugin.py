"""What the plugins of all snapshotters share: their type, and the key for a folder elsewhere."""

from __future__ import annotations

from pathlib import Path

from supervisord.contracts.plugins import PluginContext

SNAPSHOTTER = "io.containerd.snapshotter.v1"

ROOT_PATH_HELP = "Folder to use instead of the one below root; empty for that."


def root_of(context: PluginContext) -> Path:
    """Where the snapshotter keeps everything; shown as the export ``root``."""
    root = Path(context.config["root_path"] or context.root)
    context.export("root", str(root))
    return root
