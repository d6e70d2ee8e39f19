"""Layers that try to reach outside their root: nothing is written there, on either daemon.

Each layer aims at a folder of the test's own by every way that a tar archive offers. Whether the
import is refused or the name is kept inside the root is the daemon's choice; both are safe.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import ocitar
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon
from tests.conformance.ocitar import Member

NAME = "docker.io/test/hostile:1"
Layers = list[list[Member]]


def up(target: str) -> str:
    """A relative path that leads from any root to the target."""
    return "../" * 12 + target.lstrip("/")


def absolute_path(t: str) -> Layers:
    return [[Member(f"{t}/written", b"x")]]


def dot_dot(t: str) -> Layers:
    return [[Member(up(f"{t}/written"), b"x")]]


def hidden_dot_dot(t: str) -> Layers:
    return [[Member(f"a/b/../../{up(t)}/written", b"x")]]


def through_absolute_link(t: str) -> Layers:
    return [[ocitar.symlink("link", t), Member("link/written", b"x")]]


def through_relative_link(t: str) -> Layers:
    return [[ocitar.symlink("link", up(t)), Member("link/written", b"x")]]


def through_link_of_a_lower_layer(t: str) -> Layers:
    return [[ocitar.symlink("link", t)], [Member("link/written", b"x")]]


def through_two_links(t: str) -> Layers:
    return [
        [
            ocitar.symlink("a", os.path.dirname(t)),
            ocitar.symlink("b", f"a/{os.path.basename(t)}"),
            Member("b/written", b"x"),
        ]
    ]


def folder_over_link(t: str) -> Layers:
    return [[ocitar.symlink("link", t), ocitar.folder("link/sub"), Member("link/sub/f", b"x")]]


def overwrite_through_link(t: str) -> Layers:
    return [[ocitar.symlink("f", f"{t}/precious"), Member("f", b"overwritten")]]


def hard_link_outside(t: str) -> Layers:
    return [[ocitar.hardlink("l", f"{t}/precious"), Member("l", b"overwritten")]]


def hard_link_dot_dot(t: str) -> Layers:
    return [[ocitar.hardlink("l", up(f"{t}/precious")), Member("l", b"overwritten")]]


def hard_link_through_link(t: str) -> Layers:
    return [
        [
            ocitar.symlink("d", t),
            ocitar.hardlink("l", "d/precious"),
            Member("l", b"overwritten"),
        ]
    ]


def whiteout_outside(t: str) -> Layers:
    return [[ocitar.symlink("d", t)], [Member("d/.wh.precious")]]


def whiteout_dot_dot(t: str) -> Layers:
    return [[Member(up(f"{t}/.wh.precious"))]]


def whiteout_of_dots(t: str) -> Layers:
    return [[ocitar.folder("a"), Member("a/.wh..")], [Member("a/.wh...")]]


def opaque_outside(t: str) -> Layers:
    return [[ocitar.symlink("d", t)], [Member("d/.wh..wh..opq")]]


def opaque_same_layer(t: str) -> Layers:
    return [[ocitar.symlink("d", t), Member("d/.wh..wh..opq")]]


def mode_through_link(t: str) -> Layers:
    return [[ocitar.symlink("d", t), ocitar.folder("d", 0o777, uid=4242)]]


def device_through_link(t: str) -> Layers:
    return [[ocitar.symlink("d", t), Member("d/dev", type=tarfile.CHRTYPE, device=(1, 3))]]


def fifo_through_link(t: str) -> Layers:
    return [[ocitar.symlink("d", t), Member("d/fifo", type=tarfile.FIFOTYPE)]]


def proc_root(t: str) -> Layers:
    return [[ocitar.symlink("d", f"/proc/1/root{t}"), Member("d/written", b"x")]]


def proc_cwd(t: str) -> Layers:
    return [[ocitar.symlink("d", f"/proc/self/cwd/{up(t)}"), Member("d/written", b"x")]]


CASES: list[Callable[[str], Layers]] = [
    absolute_path,
    dot_dot,
    hidden_dot_dot,
    through_absolute_link,
    through_relative_link,
    through_link_of_a_lower_layer,
    through_two_links,
    folder_over_link,
    overwrite_through_link,
    hard_link_outside,
    hard_link_dot_dot,
    hard_link_through_link,
    whiteout_outside,
    whiteout_dot_dot,
    whiteout_of_dots,
    opaque_outside,
    opaque_same_layer,
    mode_through_link,
    device_through_link,
    fifo_through_link,
    proc_root,
    proc_cwd,
]


def picture(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything in a folder with mode, owner, links and content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (info.st_mode, info.st_uid, info.st_nlink, data)
    return found


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_nothing_is_written_outside(
    ctr: Ctr, daemon: Daemon, tmp_path: Path, case: Callable[[str], Layers], snapshotter: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("precious")
    before = picture(target)
    image = ocitar.build([[ocitar.folder("etc")], *case(str(target))])
    file = image.write(tmp_path / "image.tar", NAME)
    done = ctr("i", "import", "--snapshotter", snapshotter, str(file), code=None, timeout=20)
    assert picture(target) == before, done.err
    assert daemon.mounts() == []
    if done.code == 0:
        _looks_inside(ctr, snapshotter, tmp_path / "root", target, before)


def _looks_inside(
    ctr: Ctr,
    snapshotter: str,
    point: Path,
    target: Path,
    before: dict[str, tuple[int, int, int, bytes]],
) -> None:
    """What was unpacked can be mounted, and shares no inode with what is outside."""
    point.mkdir()
    ctr("i", "mount", "--snapshotter", snapshotter, NAME, str(point))
    try:
        outside = (target / "precious").stat()
        for folder, _, files in os.walk(point):
            for name in files:
                try:
                    info = os.lstat(os.path.join(folder, name))
                except FileNotFoundError:  # a whiteout over nothing is listed, and is not there
                    continue
                assert (info.st_dev, info.st_ino) != (outside.st_dev, outside.st_ino)
    finally:
        ctr("i", "unmount", "--rm", str(point))
    assert picture(target) == before


@pytest.mark.parametrize("kind", ["truncated", "garbage", "checksum"])
def test_damaged_archives_leave_nothing(ctr: Ctr, tmp_path: Path, kind: str) -> None:
    plain = bytearray(ocitar.tar([Member("file", os.urandom(100_000)), Member("other", b"x")]))
    if kind == "truncated":
        del plain[60_000:]
    elif kind == "garbage":
        plain[:] = os.urandom(len(plain))
    else:
        plain[148:156] = b"0000000\0"
    image = ocitar.build([bytes(plain)], ["none"])
    file = image.write(tmp_path / "image.tar", NAME)
    ctr.refused("i", "import", str(file))
    assert ctr("snapshots", "ls").rows() == []
