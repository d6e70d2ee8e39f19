"""What is committed is on the disk first: a few files by themselves, many with the file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from snapshotters import durable
from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter, Settings
from supervisord.contracts.errors import ResourceExhausted
from supervisord.contracts.snapshots import Kind
from supervisord.sqlite.database import Database


class Story:
    """What was synced, and when rows were written, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.lines: list[str] = []
        self._root = root
        fsync, write = os.fsync, Database.write

        def told_fsync(fd: int) -> None:
            self._tell("fsync", fd)
            fsync(fd)

        def told_syncfs(fd: int) -> None:
            self._tell("syncfs", fd)

        async def told_write(database: Database, *arguments: Any, **options: Any) -> Any:
            self.lines.append("row")
            return await write(database, *arguments, **options)

        patch.setattr(os, "fsync", told_fsync)
        patch.setattr(durable, "syncfs", told_syncfs)
        patch.setattr(Database, "write", told_write)

    def _tell(self, call: str, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self.lines.append(f"{call} {path.partition('/snapshots/')[2]}")


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Story:
    return Story(monkeypatch, tmp_path)


async def test_a_few_files(tmp_path: Path, story: Story) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    (mount,) = await overlay.prepare("a", "", {})
    source = Path(mount.source)
    (source / "d").mkdir()
    (source / "d/file").write_text("x")
    os.mkfifo(source / "d/pipe")
    (source / "link").symlink_to("nowhere")
    story.lines.clear()
    await overlay.commit("name", "a", {})
    inside = ["fsync 1/fs/d/file", "fsync 1/fs/d", "fsync 1/fs"]
    assert story.lines == [*inside, "fsync 1", "fsync ", "row"]
    await overlay.close()


async def test_many_files(tmp_path: Path, story: Story) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    (mount,) = await overlay.prepare("a", "", {})
    for number in range(durable.FEW):
        (Path(mount.source) / str(number)).touch()
    story.lines.clear()
    await overlay.commit("name", "a", {})
    assert story.lines == ["syncfs 1/fs", "row"]
    await overlay.close()


async def test_nothing_to_sync_or_not_wanted(tmp_path: Path, story: Story) -> None:
    for number, wanted in enumerate((True, False)):
        settings = Settings(sync_commit=wanted)
        overlay = await OverlaySnapshotter.open(tmp_path / str(number), settings)
        (mount,) = await overlay.prepare("a", "", {})
        if not wanted:
            (Path(mount.source) / "file").touch()
        story.lines.clear()
        await overlay.commit("name", "a", {})
        assert story.lines == ["row"]
        await overlay.close()


async def test_a_copy_is_synced_before_its_row(tmp_path: Path, story: Story) -> None:
    native = await NativeSnapshotter.open(tmp_path / "root")
    (mount,) = await native.prepare("a", "", {})
    (Path(mount.source) / "file").touch()
    await native.commit("base", "a", {})
    story.lines.clear()
    await native.prepare("b", "base", {})
    assert story.lines == ["fsync 2/file", "fsync 2", "fsync ", "row"]
    await native.close()


async def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    (mount,) = await overlay.prepare("a", "", {})
    (Path(mount.source) / "file").touch()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", _full)
        with pytest.raises(ResourceExhausted, match="snapshot 'a': no space left"):
            await overlay.commit("name", "a", {})
    assert (await overlay.stat("a")).kind == Kind.ACTIVE
    await overlay.commit("name", "a", {})
    await overlay.close()


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")
