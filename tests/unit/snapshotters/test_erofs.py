"""The erofs snapshotter: the suite, and what is particular to images."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from unittest import mock

import pytest

from snapshotters.erofs import ErofsSnapshotter, image
from snapshotters.erofs.snapshotter import Settings
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)
from supervisord.contracts.snapshots import Mount, Snapshotter
from supervisord.linux.mount import mount_points
from supervisord.linux.mount import mounted as is_mounted
from supervisord.testing import SnapshotterSuite
from supervisord.testing.mounting import mounted
from supervisord.testing.trees import (
    both,
    chown,
    contents,
    device,
    file,
    folder,
    link,
    symlink,
    xattr,
)
from tests.disks import command, devices_of, disk

on_mounts = pytest.mark.blocks("it mounts, and writes to the mounts")
Opener = Callable[[Settings], AbstractAsyncContextManager[ErofsSnapshotter]]


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    @asynccontextmanager
    async def open_one(settings: Settings) -> AsyncIterator[ErofsSnapshotter]:
        opened = await ErofsSnapshotter.open(tmp_path / "root", settings)
        try:
            yield opened
        finally:
            await opened.close()

    return open_one


@pytest.fixture
async def erofs(opener: Opener) -> AsyncIterator[ErofsSnapshotter]:
    async with opener(Settings(sync_remove=True)) as opened:
        yield opened


@pytest.mark.blocks("a program is started for each layer, which waits until it has a processor")
class TestErofs(SnapshotterSuite):
    ways = ("direct", "daemon")
    renames_lower_directories = False
    commit_keeps_usage = False

    rebases = True

    async def open(self, root: Path) -> Snapshotter:
        return await ErofsSnapshotter.open(root, Settings(sync_remove=True))


def inside(erofs: ErofsSnapshotter, id: int) -> list[str]:
    return sorted(os.listdir(erofs.root / "snapshots" / str(id)))


async def commit(erofs: ErofsSnapshotter, name: str, parent: str = "") -> None:
    await erofs.prepare(f"{name}-key", parent, {})
    await erofs.commit(name, f"{name}-key", {})


@on_mounts
async def test_images_hold_everything(erofs: ErofsSnapshotter, tmp_path: Path) -> None:
    change = both(
        folder("d", 0o1751),
        file("d/suid", "s" * 5000, 0o4755),
        chown("d", 3, 3_000_000),
        link("d/suid", "d/hard"),
        symlink("nowhere", "d/sym"),
        chown("d/sym", 5, 6),
        device("d/null", 0o020000, 1, 3),
        device("d/fifo", 0o010000, 0, 0),
        xattr("d/suid", "user.a", b"1"),
        xattr("d", "security.capability", b"\x01\x00\x00\x02\x00\x20" + bytes(14)),
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    change(flat)
    with mounted(await erofs.prepare("key", "", {}), tmp_path / "mnt") as root:
        change(root)
        os.utime(root / "d/suid", ns=(3, 4_000_000_005))
    await erofs.commit("name", "key", {})
    with mounted(await erofs.view("view", "name", {}), tmp_path / "mnt") as root:
        assert contents(root) == contents(flat)
        assert (root / "d/suid").stat().st_mtime_ns == 4_000_000_005


@on_mounts
async def test_layers_are_mounted_once_for_all(erofs: ErofsSnapshotter, tmp_path: Path) -> None:
    await commit(erofs, "one")
    await commit(erofs, "two", "one")
    at = f"{erofs.root}/snapshots"
    assert not is_mounted(f"{at}/2/mnt")
    (mount,) = await erofs.prepare("a", "two", {})
    assert mount.type == "overlay"
    assert f"lowerdir={at}/2/mnt:{at}/1/mnt" in mount.options
    assert await erofs.view("v", "one", {}) == [Mount("bind", f"{at}/1/mnt", ("ro", "rbind"))]
    assert [mount_points().count(f"{at}/{id}/mnt") for id in (1, 2)] == [1, 1]
    with mounted([mount], tmp_path / "mnt") as root:
        (root / "file").write_text("x")
        await erofs.close()
        assert not is_mounted(f"{at}/1/mnt")
        assert os.listdir(root) == ["file"], "an overlay holds on to its layers"
    again = await ErofsSnapshotter.open(erofs.root)
    try:
        assert await again.mounts("a") == [mount]
        assert is_mounted(f"{at}/1/mnt")
    finally:
        await again.close()


async def test_a_removed_layer_is_unmounted(erofs: ErofsSnapshotter) -> None:
    await commit(erofs, "one")
    await erofs.view("v", "one", {})
    await erofs.remove("v")
    assert is_mounted(f"{erofs.root}/snapshots/1/mnt")
    await erofs.remove("one")
    assert os.listdir(erofs.root / "snapshots") == []


@on_mounts
async def test_an_image_that_a_differ_made(erofs: ErofsSnapshotter, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("given")
    os.chown(tmp_path / "tree", 7, 70_000)
    (tmp_path / "tree").chmod(0o711)
    (mount,) = await erofs.prepare("key", "", {})
    own = Path(mount.source).parent
    assert sorted(os.listdir(own)) == [".erofslayer", "fs", "work"]
    await image.build(str(tmp_path / "tree"), str(own / "layer.erofs"))
    assert await erofs.mounts("key") == [Mount("erofs", f"{own}/layer.erofs", ("ro", "loop"))]
    await erofs.commit("name", "key", {})
    with mounted(await erofs.prepare("child", "name", {}), tmp_path / "mnt") as root:
        assert (root / "file").read_text() == "given"
        found = root.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (7, 70_000, 0o711)


async def test_what_is_no_image_is_not_committed(erofs: ErofsSnapshotter) -> None:
    (mount,) = await erofs.prepare("key", "", {})
    (Path(mount.source).parent / "layer.erofs").write_bytes(b"no image" * 1000)
    with pytest.raises(DataLoss, match="is no erofs image"):
        await erofs.commit("name", "key", {})
    assert (await erofs.stat("key")).name == "key"


async def test_a_taken_name_costs_no_image(erofs: ErofsSnapshotter) -> None:
    await commit(erofs, "taken")
    await erofs.prepare("key", "", {})
    with (
        mock.patch.object(image, "build", side_effect=AssertionError),
        pytest.raises(AlreadyExists),
    ):
        await erofs.commit("taken", "key", {})


@on_mounts
async def test_a_commit_that_was_interrupted(opener: Opener, tmp_path: Path) -> None:
    async with opener(Settings()) as erofs:
        with mounted(await erofs.prepare("a", "", {}), tmp_path / "mnt") as root:
            (root / "file").write_text("first")
        with (
            mock.patch.object(image, "flush", side_effect=OSError(errno.EIO, "the disk")),
            pytest.raises(Exception, match="the disk"),
        ):
            await erofs.commit("name", "a", {})
        assert "layer.erofs.new" in inside(erofs, 1)
        with mounted(await erofs.mounts("a"), tmp_path / "mnt") as root:
            (root / "file").write_text("second")
        with (
            mock.patch.object(ErofsSnapshotter, "_settle", side_effect=OSError(errno.EIO, "died")),
            pytest.raises(OSError, match="died"),
        ):
            await erofs.commit("name", "a", {})
        assert {"fs", "layer.erofs.new"} < set(inside(erofs, 1))
    async with opener(Settings()) as erofs:
        assert inside(erofs, 1) == [".erofslayer", "layer.erofs"]
        with mounted(await erofs.view("v", "name", {}), tmp_path / "mnt") as root:
            assert (root / "file").read_text() == "second"


async def test_a_lost_image_is_told_of(opener: Opener, caplog: pytest.LogCaptureFixture) -> None:
    async with opener(Settings()) as erofs:
        await commit(erofs, "one")
        await commit(erofs, "two")
        await erofs.prepare("lost", "two", {})
    (erofs.root / "snapshots/1/layer.erofs").unlink()
    shutil.rmtree(erofs.root / "snapshots/3")
    async with opener(Settings()) as erofs:
        assert "snapshot one: snapshot 1: its layer image is gone" in caplog.text
        assert inside(erofs, 3) == [".erofslayer", "fs", "work"]
        with pytest.raises(NotFound, match="layer image is gone"):
            await erofs.prepare("a", "one", {})
        await erofs.prepare("a", "two", {})


@on_mounts
async def test_a_layer_gets_its_parent_at_commit(erofs: ErofsSnapshotter, tmp_path: Path) -> None:
    with mounted(await erofs.prepare("a", "", {}), tmp_path / "mnt") as root:
        both(folder("etc", 0o711), chown("etc", 3, 4), file("etc/below"))(root)
    await erofs.commit("one", "a", {})
    with mounted(await erofs.prepare("b", "", {}), tmp_path / "mnt") as root:
        both(folder("etc", 0o755), file("etc/above"))(root)
        for name in (root, root / "etc"):
            os.setxattr(name, "trusted.overlay.supervisord.implied", b"y")
    await erofs.commit("two", "b", {}, "one")
    with mounted(await erofs.view("v", "two", {}), tmp_path / "mnt") as root:
        assert sorted(os.listdir(root / "etc")) == ["above", "below"]
        found = (root / "etc").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (3, 4, 0o711)


async def test_a_full_disk(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ext4", size=12 << 20) as volume:
        erofs = await ErofsSnapshotter.open(volume / "root", Settings(sync_remove=True))
        try:
            (mount,) = await erofs.prepare("a", "", {})
            (Path(mount.source) / "data").write_bytes(os.urandom(5 << 20))
            with pytest.raises(ResourceExhausted):
                await erofs.commit("name", "a", {})
            (Path(mount.source) / "data").write_bytes(b"little")
            await erofs.commit("name", "a", {})
            await erofs.view("v", "name", {})
        finally:
            await erofs.close()


async def test_images_are_guarded(opener: Opener) -> None:
    async with opener(Settings(immutable=True, sync_remove=True)) as erofs:
        await commit(erofs, "one")
        path = erofs.root / "snapshots/1/layer.erofs"
        with pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(PermissionError):
            path.write_bytes(b"no")
        await erofs.remove("one")
        assert not path.exists()


async def test_verity_is_refused_where_it_is_not_to_be_had(tmp_path: Path, opener: Opener) -> None:
    (tmp_path / "root").mkdir()
    if image.supports_verity(str(tmp_path / "root")):
        async with opener(Settings(verity=True)) as erofs:
            await commit(erofs, "one")
            assert image.has_verity(f"{erofs.root}/snapshots/1/layer.erofs")
            await erofs.view("v", "one", {})
    else:
        with pytest.raises(FailedPrecondition, match="fsverity is not supported"):
            async with opener(Settings(verity=True)):
                raise AssertionError
    assert not (tmp_path / "root/.verity").exists()


# For the mount manager ----------------------------------------------------------------------


async def test_described_layers(opener: Opener) -> None:
    async with opener(Settings(mount_layers=False, mount_options=("index=off",))) as erofs:
        await commit(erofs, "one")
        await commit(erofs, "two", "one")
        at = f"{erofs.root}/snapshots"
        one = Mount("erofs", f"{at}/1/layer.erofs", ("ro", "loop"))
        two = Mount("erofs", f"{at}/2/layer.erofs", ("ro", "loop"))
        assert await erofs.view("v", "one", {}) == [one]
        upper = (f"workdir={at}/4/work", f"upperdir={at}/4/fs")
        options = (*upper, "lowerdir={{ overlay 0 1 }}", "index=off")
        stacked = [two, one, Mount("format/mkdir/overlay", "overlay", options)]
        assert await erofs.prepare("a", "two", {}) == stacked
        upper = (f"workdir={at}/5/work", f"upperdir={at}/5/fs")
        options = (*upper, "lowerdir={{ mount 0 }}", "index=off")
        stacked = [one, Mount("format/mkdir/overlay", "overlay", options)]
        assert await erofs.prepare("b", "one", {}) == stacked
        assert not any(point.startswith(at) for point in mount_points())


@on_mounts
async def test_layers_of_a_limited_size(opener: Opener, tmp_path: Path) -> None:
    async with opener(Settings(size=64 << 20)) as erofs:
        labels = {"containerd.io/snapshot/max-size": str(8 << 20)}
        own, bind = await erofs.prepare("a", "", labels)
        assert own.type == "mkfs/ext4"
        assert f"X-containerd.mkfs.size={8 << 20}" in own.options
        assert (bind.type, bind.source) == ("format/mkdir/bind", "{{ mount 0 }}/upper")
        with open(own.source, "wb") as out:  # noqa: ASYNC230
            out.truncate(8 << 20)
        command(["mkfs.ext4", "-q", own.source])
        with mounted([Mount("ext4", own.source, ("loop",))], tmp_path / "mnt") as root:
            (root / "upper").mkdir()
            (root / "upper/file").write_text("kept")
        await erofs.commit("one", "a", {})
        assert devices_of(Path(own.source)) == []
        with mounted(await erofs.view("v", "one", {}), tmp_path / "mnt") as root:
            assert (root / "file").read_text() == "kept"
        first, second, overlay = await erofs.prepare("b", "one", {})
        assert f"X-containerd.mkfs.size={64 << 20}" in first.options
        assert second.type == "erofs"
        assert "lowerdir={{ mount 1 }}" in overlay.options
        assert "upperdir={{ mount 0 }}/upper" in overlay.options


@on_mounts
async def test_images_can_be_compressed(opener: Opener, tmp_path: Path) -> None:
    async with opener(Settings(mkfs_options=["-zlz4hc"])) as erofs:
        with mounted(await erofs.prepare("a", "", {}), tmp_path / "mnt") as root:
            (root / "file").write_bytes(b"again and again\n" * 100_000)
        await erofs.commit("one", "a", {})
        assert (await erofs.usage("one")).size < 100_000
        with mounted(await erofs.view("v", "one", {}), tmp_path / "mnt") as root:
            assert (root / "file").read_bytes() == b"again and again\n" * 100_000
