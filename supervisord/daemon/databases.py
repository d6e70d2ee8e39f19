"""Where the databases of a root are, for those who work on them while no daemon runs.

Knows the metadata, and the indexes of the snapshotters that keep theirs as ours do. Nothing is
opened before it is asked for.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotters import index
from snapshotters.plugin import SNAPSHOTTER
from supervisord.contracts.plugins import Registration
from supervisord.metadata.lost import Lost
from supervisord.metadata.schema import MIGRATIONS
from supervisord.sqlite.migrations import Migration
from supervisord.sqlite.salvage import Salvage, faults_of, salvage

from .config import Config

_METADATA = "io.containerd.metadata.v1.sqlite"


@dataclass(frozen=True, slots=True)
class Kept:
    """One database: its file, its schema, and the folder of snapshots that it is the index of."""

    root: Path
    path: Path
    migrations: Sequence[Migration]
    folders: Path | None = None

    @property
    def is_metadata(self) -> bool:
        """Whether it is not an index."""
        return self.folders is None

    @property
    def name(self) -> str:
        """The path as backups have it."""
        inside = self.path.is_relative_to(self.root)
        return str(self.path.relative_to(self.root) if inside else self.path)

    @property
    def quarantine(self) -> Path:
        """Where folders go that an index has lost."""
        return self.path.parent / "quarantine"

    def faults(self) -> list[str]:
        """What is wrong with the file."""
        return faults_of(self.path, quick=False)

    def salvage(self) -> Salvage:
        """Replaces the file by what can be read of it. Raises OSError, sqlite3.Error."""
        self.note_loss("the metadata was damaged")
        return salvage(self.path, self.migrations)

    def note_loss(self, reason: str) -> None:
        """What has no record from now on is no rubbish. Raises OSError."""
        if self.is_metadata:
            Lost(self.path.parent).note(reason)

    def set_aside_folders(self) -> list[str]:
        """Moves folders that the index does not know (any more) out of the way of cleanups.

        Raises OSError, sqlite3.Error."""
        if self.folders is None or not self.folders.is_dir():
            return []
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            known = {str(id) for (id,) in connection.execute("SELECT id FROM snapshots")}
        moved = []
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for folder in sorted(self.folders.iterdir()):
            if folder.name.partition(".")[0] not in known:
                self.quarantine.mkdir(mode=0o700, exist_ok=True)
                folder.rename(self.quarantine / f"{folder.name}-{stamp}")
                moved.append(str(folder))
        return moved


def kept_databases(config: Config, registrations: Sequence[Registration]) -> list[Kept]:
    """The metadata first, then the indexes that are there."""
    root = Path(config.root)
    found = [Kept(root, root / _METADATA / "metadata.db", MIGRATIONS)]
    for each in registrations:
        if each.type != SNAPSHOTTER:
            continue
        folder = Path(config.plugins.get(each.uri, {}).get("root_path") or root / each.uri)
        if (folder / "snapshots").is_dir():
            path = folder / "metadata.sqlite"
            found.append(Kept(root, path, index.MIGRATIONS, folder / "snapshots"))
    return found
