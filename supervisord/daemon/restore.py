"""Brings back a backup's databases. The metadata is always taken from it; an index of a snapshotter
only where the one that is here is missing or damaged, because it knows more than an older one.

What is here is kept beside. What the backup does not know (newer blobs and snapshots) is given
records by the repair that follows. Called by ``offline`` alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisord.cli.errors import CliError
from supervisord.services.check import FORMAT, INDEX
from supervisord.sqlite.salvage import faults_of

from .databases import Kept


def restore(archive: Path, databases: Sequence[Kept]) -> None:
    """Replaces the databases. Raises CliError for what is no backup or is damaged, OSError."""
    folder = databases[0].root
    with tempfile.TemporaryDirectory(prefix=".restore", dir=folder) as scratch:
        copies, made_at = _unpacked(archive, Path(scratch))
        chosen = []
        for kept in databases:
            copy = copies.get(kept.name)
            if copy is None:
                if kept.is_metadata:
                    raise CliError(f"{archive}: has no copy of {kept.name}")
                continue
            _check(archive, kept, copy)
            if kept.is_metadata or not kept.path.exists() or kept.faults():
                chosen.append((kept, copy))
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made_at))
        for kept, copy in chosen:
            kept.note_loss(f"the metadata was restored from a backup of {moment}")
            aside = _put(copy, kept.path)
            kept.set_aside_folders()
            beside = f"; the one before is {aside.name}" if aside else ""
            print(f"supervisord: {kept.path}: as of {moment}{beside}", file=sys.stderr)


def _unpacked(archive: Path, folder: Path) -> tuple[Mapping[str, Path], int]:
    """The copies by the path that they had, and when they were made."""
    try:
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(folder, filter="data")
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != FORMAT:
            raise CliError(f"{archive}: has format {index['format']}: a newer release made it")
        copies = {
            str(each["path"]): folder / Path(str(each["name"])).name for each in index["databases"]
        }
        return copies, int(index["time"])
    except (tarfile.TarError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        if not archive.exists():
            raise
        raise CliError(f"{archive}: is no backup: {str(error).splitlines()[0]}") from error


def _check(archive: Path, kept: Kept, copy: Path) -> None:
    lines = faults_of(copy, quick=False)
    if lines:
        raise CliError(f"{archive}: the copy of {kept.name} is damaged: {lines[0]}")
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(kept.migrations):
        raise CliError(f"{archive}: a newer release made it: {kept.name} has version {version}")


def _put(copy: Path, path: Path) -> Path | None:
    """Moves what is there aside, and the copy to its place; answers where the old one is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.replaced-{stamp}") if path.exists() else None
    for end in ("", "-wal", "-shm"):
        old = path.with_name(path.name + end)
        if aside is not None and old.exists():
            old.rename(aside.with_name(aside.name + end))
        else:
            old.unlink(missing_ok=True)
    copy.chmod(0o600)
    copy.rename(path)
    for durable in (path, path.parent):
        descriptor = os.open(durable, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return aside
