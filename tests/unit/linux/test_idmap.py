"""Real id-mapped mounts: binds, overlays by either way of the kernel, and what cannot be one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from supervisord.contracts.errors import Error, InvalidArgument
from supervisord.contracts.snapshots import Mount
from supervisord.linux import idmap, mount, overlay_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

MAPS = ("uidmap=0:100000:65536", "gidmap=0:200000:1000,1000:300000:1000")
ROOT = (100000, 200000)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "target"
    folder.mkdir()
    yield folder
    for point in reversed(mount.mount_points()):
        if point.startswith(str(tmp_path)):
            mount.unmount_all(point)


@pytest.fixture(params=["layers mounted nowhere", "layers mounted elsewhere"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to the same mount; the second is that of kernels before 6.15."""
    if request.param == "layers mounted nowhere":
        release = tuple(int(part) for part in os.uname().release.split(".")[:2])
        if release < (6, 15):
            pytest.skip("this kernel has no detached layers")
        with mock.patch.object(overlay_mount, "_mapped_elsewhere", side_effect=AssertionError):
            yield
    else:
        with mock.patch.object(overlay_mount, "_by_fsconfig", side_effect=OSError(22, "older")):
            yield


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def overlay(base: Path, layers: int) -> Mount:
    lowers = []
    for number in range(layers):
        folder = base / "layers" / f"{number}" / "fs"
        folder.mkdir(parents=True)
        (folder / f"f{number}").write_text("below")
        lowers.append(str(folder))
    for name in ("up", "work"):
        (base / name).mkdir()
    os.chown(base / "up", *ROOT)
    options = (*MAPS, f"workdir={base}/work", f"upperdir={base}/up", f"lowerdir={':'.join(lowers)}")
    return Mount("overlay", "overlay", (*options, "index=off"))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("layers", [1, 3, 200])
def test_overlays_map_their_layers(tmp_path: Path, target: Path, layers: int) -> None:
    spec = overlay(tmp_path, layers)
    here = os.getcwd()
    mount.mount_all([spec], str(target))
    assert os.getcwd() == here
    assert mount.mount_points().count(str(target)) == 1
    assert sorted(os.listdir(target)) == sorted(f"f{number}" for number in range(layers))
    assert owner(target) == owner(target / "f0") == ROOT
    below = tmp_path / "layers/0/fs/f0"
    before = below.stat()
    (target / "f0").write_text("above")
    os.chown(target / "f0", 100007, 200007)
    assert below.stat() == before
    assert below.read_text() == "below"
    assert owner(tmp_path / "up/f0") == (100007, 200007), "the upper layer keeps what it is given"
    mount.unmount_all(str(target))
    assert not mount.mounted(str(target))


@pytest.mark.usefixtures("way")
def test_a_view_maps_too(tmp_path: Path, target: Path) -> None:
    spec = overlay(tmp_path, 2)
    options = tuple(o for o in spec.options if not o.startswith(("upperdir", "workdir")))
    mount.mount_all([Mount("overlay", "overlay", ("ro", *options))], str(target))
    assert owner(target / "f1") == ROOT
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


def test_layers_on_filesystems_of_their_own(tmp_path: Path, target: Path) -> None:
    spec = overlay(tmp_path, 2)
    mount.mount_all([Mount("tmpfs", "tmpfs", ("mode=0755",))], str(tmp_path / "layers/1"))
    (tmp_path / "layers/1/fs").mkdir()
    (tmp_path / "layers/1/fs/other").touch()
    mount.mount_all([spec], str(target))
    assert sorted(os.listdir(target)) == ["f0", "other"]
    assert owner(target / "other") == ROOT
    mount.unmount_all(str(target))
    with (
        mock.patch.object(overlay_mount, "_by_fsconfig", side_effect=OSError(22, "older")),
        pytest.raises(Error, match=r"is a mount of its own|no such file"),
    ):
        mount.mount_all([spec], str(target))
    assert not mount.mounted(str(target))


@pytest.mark.usefixtures("way")
def test_layers_on_a_filesystem_that_cannot(tmp_path: Path, target: Path) -> None:
    proc = tmp_path / "layers/x"
    proc.mkdir(parents=True)
    (tmp_path / "layers/y").mkdir()
    mount.mount_all([Mount("proc", "proc")], str(proc))
    spec = Mount("overlay", "overlay", (*MAPS, f"lowerdir={proc}:{tmp_path}/layers/y"))
    with pytest.raises(Error, match=r"cannot map ids|is a mount of its own"):
        mount.mount_all([spec], str(target))
    assert not mount.mounted(str(target))


@pytest.mark.parametrize("access", ["ro", "rw"])
@pytest.mark.parametrize("kind", ["bind", "rbind"])
def test_binds_map(tmp_path: Path, target: Path, kind: str, access: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").touch()
    os.chown(source / "a", 5, 1005)
    mount.mount_all([Mount("bind", str(source), (*MAPS, access, kind, "nosuid"))], str(target))
    assert owner(target) == ROOT
    assert owner(target / "a") == (100005, 300005)
    assert os.statvfs(target).f_flag & os.ST_NOSUID
    assert bool(os.statvfs(target).f_flag & os.ST_RDONLY) == (access == "ro")
    assert owner(source / "a") == (5, 1005)
    if access == "rw":
        os.chown(target / "a", 100009, 300009)
        assert owner(source / "a") == (9, 1009)
        with pytest.raises(OSError, match="too large"):
            (target / "b").touch()  # the owner is not one that the map knows


def test_other_filesystems_map(target: Path) -> None:
    mount.mount_all([Mount("tmpfs", "tmpfs", (*MAPS, "mode=0755"))], str(target))
    assert owner(target) == ROOT
    mount.unmount_all(str(target))
    assert not mount.mounted(str(target))


def test_one_map_leaves_the_other_ids_alone(tmp_path: Path, target: Path) -> None:
    os.chown(tmp_path, 0, 7)
    mount.mount_all([Mount("bind", str(tmp_path), ("bind", MAPS[0]))], str(target))
    assert owner(target) == (100000, 7)


@pytest.mark.parametrize(
    "text", ["0", "0:1", "0:1:x", "-1:0:5", "0:0:0", "0:4294967295:1", "0:0:1,", "\u0660:0:1"]
)
def test_malformed_maps(target: Path, text: str) -> None:
    for option in ("uidmap", "gidmap"):
        with pytest.raises(InvalidArgument, match=option):
            mount.mount_all([Mount("bind", "/", ("bind", f"{option}={text}"))], str(target))
    assert not mount.mounted(str(target))


def test_maps_that_the_kernel_refuses(target: Path) -> None:
    twice = "uidmap=0:1000:10,5:5000:10"
    with pytest.raises(InvalidArgument, match="uid_map"):
        mount.mount_all([Mount("bind", "/", ("bind", twice))], str(target))
    many = ",".join(f"{number}:{number}:1" for number in range(341))
    with pytest.raises(InvalidArgument, match="more than 340"):
        mount.mount_all([Mount("bind", "/", ("bind", f"uidmap={many}"))], str(target))


def test_nobody_finds_the_process_of_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who waits for any child, neither while it is there nor when it was killed."""
    seen: list[int] = []
    real = os.kill

    def kill(pid: int, number: int) -> None:
        assert pid in children()
        real(pid, number)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert found is None or found.si_pid != pid
        seen.append(pid)

    monkeypatch.setattr(os, "kill", kill)
    with idmap.user_namespace("0:100000:1", "") as userns:
        assert os.readlink(f"/proc/self/fd/{userns}").startswith("user:[")
        assert os.readlink(f"/proc/self/fd/{userns}") != os.readlink("/proc/self/ns/user")
    assert len(seen) == 1
    assert not Path(f"/proc/{seen[0]}").exists()


def children() -> list[int]:
    return [
        int(pid)
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    ]
