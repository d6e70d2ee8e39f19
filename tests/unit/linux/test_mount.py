"""Real mounts: overlay with many layers, binds, stacks, undo, targets inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from supervisord.contracts.errors import Error, InvalidArgument, Unknown
from supervisord.contracts.snapshots import Mount
from supervisord.linux import mount, overlay_mount, syscalls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "target"
    folder.mkdir()
    yield folder
    for point in reversed(mount.mount_points()):
        if point.startswith(str(tmp_path)):
            mount.unmount_all(point)


def overlay(base: Path, layers: int) -> Mount:
    for number in range(layers):
        (base / f"{number}" / "fs").mkdir(parents=True)
        (base / f"{number}" / "fs" / f"f{number}").touch()
    (base / "up").mkdir()
    (base / "work").mkdir()
    lower = ":".join(str(base / f"{number}" / "fs") for number in range(layers))
    options = ("index=off", f"workdir={base}/work", f"upperdir={base}/up", f"lowerdir={lower}")
    return Mount("overlay", "overlay", options)


def test_overlay_and_stacked_mounts(tmp_path: Path, target: Path) -> None:
    mounts = [overlay(tmp_path, 2), Mount("tmpfs", "tmpfs", ("ro", "nosuid", "size=1m"))]
    assert not mount.mounted(str(target))
    mount.mount_all(mounts, str(target))
    assert mount.mounted(str(target))
    assert mount.mount_points().count(str(target)) == 2
    assert os.statvfs(target).f_flag & os.ST_RDONLY
    mount.unmount_all(str(target))
    assert not mount.mounted(str(target))
    assert mount.mount_points().count(str(target)) == 0
    mount.unmount_all(str(target))
    mount.unmount_all(str(tmp_path / "nothing"))
    assert not mount.mounted(str(tmp_path / "nothing"))


def deep(tmp_path: Path) -> Path:
    base = tmp_path / ("d" * 60)
    base.mkdir()
    return base


def check_100_layers(target: Path) -> None:
    assert sorted(os.listdir(target)) == sorted(f"f{number}" for number in range(100))
    (target / "new").touch()


def test_more_layers_than_fit_in_a_page(tmp_path: Path, target: Path) -> None:
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 7):
        pytest.skip("this kernel has no lowerdir+")
    base = deep(tmp_path)
    with mock.patch.object(overlay_mount, "_compacted", side_effect=AssertionError):
        mount.mount_all([overlay(base, 100)], str(target))
    check_100_layers(target)
    assert (base / "up" / "new").exists()


def test_the_same_on_an_older_kernel(tmp_path: Path, target: Path) -> None:
    where = os.getcwd()
    base = deep(tmp_path)
    with mock.patch.object(overlay_mount, "_by_fsconfig", side_effect=OSError(38, "no such call")):
        mount.mount_all([overlay(base, 100)], str(target))
    check_100_layers(target)
    assert os.getcwd() == where


def test_too_many_layers_for_an_older_kernel(tmp_path: Path, target: Path) -> None:
    base = deep(tmp_path)
    with (
        mock.patch.object(overlay_mount, "_by_fsconfig", side_effect=OSError(38, "no such call")),
        pytest.raises(InvalidArgument, match="600 overlay layers"),
    ):
        mount.mount_all([overlay(base, 600)], str(target))


def test_a_read_only_bind(tmp_path: Path, target: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    spec = Mount("bind", str(tmp_path / "source"), ("rbind", "ro", "rprivate"))
    mount.mount_all([spec], str(target))
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("no")
    mount.unmount_all(str(target))


def test_a_failure_takes_away_what_was_mounted(target: Path) -> None:
    mounts = [Mount("tmpfs", "tmpfs"), Mount("tmpfs", "tmpfs", ("size=nonsense",))]
    with pytest.raises(InvalidArgument, match=r"mount tmpfs 'tmpfs' on .*: invalid argument"):
        mount.mount_all(mounts, str(target))
    assert not mount.mounted(str(target))


def test_a_failure_after_the_first_step_of_one_mount(tmp_path: Path, target: Path) -> None:
    real = syscalls.mount

    def refuse_remount(*arguments: Any) -> int:
        if isinstance(arguments[3], int) and arguments[3] & 0x20:
            raise OSError(1, "Operation not permitted")
        return real(*arguments)

    spec = Mount("bind", str(tmp_path), ("bind", "ro"))
    with (
        mock.patch.object(syscalls, "mount", refuse_remount),
        pytest.raises(Unknown, match="operation not permitted"),
    ):
        mount.mount_all([spec], str(target))
    assert not mount.mounted(str(target))


def test_a_layer_that_is_gone_is_named(tmp_path: Path, target: Path) -> None:
    spec = overlay(tmp_path, 3)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(Unknown, match=rf"mount overlay .*: '{tmp_path}/1/fs' is gone"):
        mount.mount_all([spec], str(target))
    shutil.rmtree(tmp_path / "up")
    with pytest.raises(Unknown, match=rf"mount overlay .*: '{tmp_path}/up' is gone"):
        mount.mount_all([spec], str(target))


def test_a_target_stays_inside(tmp_path: Path, target: Path) -> None:
    (target / "inner").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "evil").symlink_to(outside)
    (target / "outside").mkdir()
    mount.mount_all([Mount("tmpfs", "tmpfs", target="/inner")], str(target))
    assert mount.mounted(str(target / "inner"))
    with pytest.raises(Error, match="target '/evil'"):
        mount.mount_all([Mount("tmpfs", "tmpfs", target="/evil")], str(target))
    assert not mount.mounted(str(outside))
    with pytest.raises(Error):
        mount.mount_all([Mount("tmpfs", "tmpfs", target="/../../none")], str(target))


def test_a_busy_mount_goes_lazily(target: Path) -> None:
    mount.mount_all([Mount("tmpfs", "tmpfs")], str(target))
    with (target / "open").open("w"):
        mount.unmount_all(str(target))
        assert not mount.mounted(str(target))


def test_mount_points_with_odd_names(tmp_path: Path, target: Path) -> None:
    odd = tmp_path / "a b\\040\tc"
    odd.mkdir()
    mount.mount_all([Mount("tmpfs", "tmpfs")], str(odd))
    assert str(odd) in mount.mount_points()
    mount.unmount_all(str(odd))
