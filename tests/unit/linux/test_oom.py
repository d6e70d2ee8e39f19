"""Out-of-memory events of version 2, told by recorded files that change as the kernel's do."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from supervisord.linux import oom
from supervisord.linux.cgroups import Cgroup


def events(folder: Path, kills: int, *, ooms: int = 0) -> None:
    """What the kernel writes is one line for each event, all of them at once."""
    text = f"low 0\nhigh 0\nmax 7\noom {ooms}\noom_kill {kills}\noom_group_kill 0\n"
    with (folder / "memory.events").open("r+" if (folder / "memory.events").exists() else "w") as f:
        f.write(text)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    events(folder, 3)
    return folder


def readable(watch: oom.Watch, milliseconds: int = 5000) -> bool:
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    return bool(poll.poll(milliseconds))


def test_kills_are_counted_from_the_beginning_of_the_watch(group: Path) -> None:
    watch = oom.watch(Cgroup(str(group.parent), True, {"": "/web"}))
    try:
        assert not readable(watch, 0)
        assert watch.take() == 0
        events(group, 4)
        assert readable(watch)
        assert watch.take() == 1
        assert watch.take() == 0
        events(group, 9)
        assert readable(watch)
        assert watch.take() == 5
    finally:
        watch.close()


def test_other_changes_are_no_kill(group: Path) -> None:
    """The group was at its limit, and the kernel found memory."""
    watch = oom.watch(Cgroup(str(group.parent), True, {"": "/web"}))
    try:
        events(group, 3, ooms=2)
        assert readable(watch)
        assert watch.take() == 0
    finally:
        watch.close()


def test_a_group_that_goes_away_is_no_kill(group: Path) -> None:
    watch = oom.watch(Cgroup(str(group.parent), True, {"": "/web"}))
    try:
        (group / "memory.events").unlink()
        group.rmdir()
        assert watch.take() == 0
    finally:
        watch.close()
