"""Real mounts of files: loop devices, erofs without them, and what is left of either."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from supervisord.contracts.errors import Error, Unavailable, Unknown
from supervisord.contracts.snapshots import Mount
from supervisord.linux import loop, mount, syscalls
from tests.disks import command, devices_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "target"
    folder.mkdir()
    yield folder
    mount.unmount_all(str(folder))


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    image = tmp_path / "ext4.img"
    with image.open("wb") as out:
        out.truncate(16 << 20)
    command(["mkfs.ext4", "-q", str(image)])
    return image


@pytest.fixture
def erofs(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("in an image")
    command(["mkfs.erofs", "--quiet", str(tmp_path / "erofs.img"), str(tmp_path / "tree")])
    return tmp_path / "erofs.img"


def test_the_device_goes_with_its_mount(ext4: Path, target: Path) -> None:
    mount.mount_all([Mount("ext4", str(ext4), ("rw", "loop"))], str(target))
    (device,) = devices_of(ext4)
    assert (target / "lost+found").is_dir()
    (target / "file").write_text("kept")
    assert Path(f"/sys/block/{device}/loop/autoclear").read_text() == "1\n"
    assert Path(f"/sys/block/{device}/ro").read_text() == "0\n"
    mount.unmount_all(str(target))
    assert devices_of(ext4) == []
    mount.mount_all([Mount("ext4", str(ext4), ("ro", "loop"))], str(target))
    (device,) = devices_of(ext4)
    assert (target / "file").read_text() == "kept"
    assert Path(f"/sys/block/{device}/ro").read_text() == "1\n"


def test_direct_io_where_it_is_asked_for(ext4: Path, target: Path) -> None:
    mount.mount_all([Mount("ext4", str(ext4), ("loop", "direct-io"))], str(target))
    (device,) = devices_of(ext4)
    assert Path(f"/sys/block/{device}/loop/dio").read_text() == "1\n"


def test_a_refused_mount_leaves_no_device(ext4: Path, target: Path) -> None:
    with pytest.raises(Error, match="mount btrfs"):
        mount.mount_all(
            [Mount("ext4", str(ext4), ("loop",)), Mount("btrfs", str(ext4), ("loop",))], str(target)
        )
    assert devices_of(ext4) == []
    assert not mount.mounted(str(target))
    with pytest.raises(Unknown, match="no such file or directory"):
        mount.mount_all([Mount("ext4", f"{ext4}.none", ("loop",))], str(target))


def test_erofs_without_a_device(erofs: Path, target: Path) -> None:
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 12):
        pytest.skip("this kernel has no erofs on files")
    mount.mount_all([Mount("erofs", str(erofs), ("ro", "loop"))], str(target))
    assert (target / "file").read_text() == "in an image"
    assert devices_of(erofs) == []


def test_erofs_on_an_older_kernel(erofs: Path, target: Path) -> None:
    real = syscalls.mount

    def refuse_files(source: bytes, *arguments: Any) -> int:
        if source.endswith(b".img"):
            raise OSError(errno.ENOTBLK, "Block device required")
        return real(source, *arguments)

    with mock.patch.object(syscalls, "mount", refuse_files):
        mount.mount_all([Mount("erofs", str(erofs), ("loop",))], str(target))
    assert (target / "file").read_text() == "in an image"
    assert len(devices_of(erofs)) == 1


def test_many_at_once_get_a_device_each(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(12)]
    for file in files:
        with file.open("wb") as out:
            out.truncate(1 << 20)
    start = threading.Barrier(len(files))
    found: list[tuple[int, str]] = []

    def attach(path: Path) -> None:
        start.wait()
        found.append(loop.attach(str(path), read_only=True))

    threads = [threading.Thread(target=attach, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({name for _, name in found}) == len(files)
        assert [len(devices_of(file)) for file in files] == [1] * len(files)
    finally:
        for fd, _ in found:
            os.close(fd)
    assert [devices_of(file) for file in files] == [[]] * len(files)


def test_a_device_that_is_kept_stays_until_it_is_not(ext4: Path) -> None:
    fd, name = loop.attach(str(ext4), read_only=False)
    loop.keep(fd, True)
    os.close(fd)
    assert devices_of(ext4) == [name.removeprefix("/dev/")]
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    loop.keep(fd, False)
    os.close(fd)
    assert devices_of(ext4) == []


def test_somebody_takes_every_free_device(ext4: Path) -> None:
    taken = mock.Mock(side_effect=OSError(errno.EBUSY, "busy"))
    with mock.patch.object(syscalls, "ioctl", taken), pytest.raises(Unavailable, match="loop"):
        loop.attach(str(ext4), read_only=True)
    assert devices_of(ext4) == []
