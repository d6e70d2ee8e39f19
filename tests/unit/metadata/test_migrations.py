"""Every layout that a database ever had is stored beside this file, and becomes today's.

``old/vN.sql`` is a database as the release that had N migrations wrote it, with a row of each noun.
A new migration comes with the file of the version before it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from supervisord.contracts.checks import Finding, Options
from supervisord.metadata.schema import MIGRATIONS
from supervisord.sqlite.migrations import NewerDatabase

from .conftest import MemorySnapshotter, Recorder, opened

OLD = Path(__file__).parent / "old"
OLDER = range(1, len(MIGRATIONS))


def laid(tmp_path: Path, version: int) -> Path:
    """The database of that version, where the stores look for it."""
    path = tmp_path / "metadata" / "metadata.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old:
        old.executescript((OLD / f"v{version}.sql").read_text())
        assert old.execute("PRAGMA user_version").fetchone() == (version,)
    return path


def tables(path: Path) -> dict[str, list[tuple[str, ...]]]:
    """Names and columns of all tables."""
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f"PRAGMA table_info({name})").fetchall() for (name,) in names
        }


def test_every_older_version_is_stored() -> None:
    assert {path.name for path in OLD.iterdir()} == {f"v{version}.sql" for version in OLDER}


@pytest.mark.parametrize("version", OLDER)
async def test_an_old_database_becomes_todays(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter, version: int
) -> None:
    path = laid(tmp_path, version)
    stores = await opened(tmp_path, events, backend)
    try:
        assert [n.name for n in stores.namespaces.list()] == ["test"]
        assert [c.id for c in stores.containers.list("test")] == ["web"]
        assert [image.name for image in stores.images.list("test")] == ["docker.io/library/a:1"]
        assert [lease.id for lease in stores.leases.list("test")] == ["l"]
        found = [
            (each.kind, each.problem)
            async for each in stores.checker.check(Options())
            if isinstance(each, Finding)
        ]
        assert set(found) == {("blob", "missing"), ("snapshot", "missing")}  # rows is all there is
    finally:
        await stores.close()
    fresh = await opened(tmp_path / "fresh", events, MemorySnapshotter())
    await fresh.close()
    assert tables(path) == tables(tmp_path / "fresh/metadata/metadata.db")
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    kept = path.with_name(f"metadata.db.v{version}")  # the way back to the older release
    with closing(sqlite3.connect(kept)) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (version,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM containers").fetchone() == (1,)


async def test_a_newer_database_is_refused_and_left_as_it_is(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    path = laid(tmp_path, 1)
    newer = len(MIGRATIONS) + 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    with pytest.raises(NewerDatabase, match=rf"{path}: .* schema version {newer}.*newer release"):
        await opened(tmp_path, events, backend)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (newer,)
        assert connection.execute("SELECT count(*) FROM containers").fetchone() == (1,)
    assert not list(path.parent.glob("*.v*"))


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = laid(tmp_path, OLDER[-1])

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM containers")
        raise sqlite3.OperationalError("it does not work")

    monkeypatch.setattr("supervisord.metadata.store.MIGRATIONS", (*MIGRATIONS[:-1], broken))
    with pytest.raises(sqlite3.OperationalError, match="does not work"):
        await opened(tmp_path, events, backend)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM containers").fetchone() == (1,)
        assert connection.execute("PRAGMA user_version").fetchone() == (OLDER[-1],)
