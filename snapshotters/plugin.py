"""What the plugins of all snapshotters share: their type, and the folder that each has."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from supervisord.contracts.plugins import PluginContext

from .lock import hold

SNAPSHOTTER = "io.containerd.snapshotter.v1"

ROOT_PATH = "root_path"
ROOT_PATH_HELP = "Folder to use instead of the one below root; empty for that."


def root_of(context: PluginContext) -> Path:
    """Where the snapshotter keeps everything; shown as the export ``root``. Not made here."""
    root = Path(context.config[ROOT_PATH] or context.root)
    context.export("root", str(root))
    return root


def take(context: PluginContext, root: Path) -> None:
    """Makes the folder and holds it until the plugin is closed.

    Raises FailedPrecondition if another process has it, OSError."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = ExitStack()
    held.enter_context(hold(str(root / "lock")))

    async def let_go() -> None:
        held.close()

    context.on_close(let_go)
