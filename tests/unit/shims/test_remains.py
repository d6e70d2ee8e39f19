"""An overlay as the root filesystem: out of sight when a delete is answered, taken down behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Unknown
from supervisord.contracts.snapshots import Mount
from supervisord.linux import mount

from .conftest import Shim, ShimRoom, eventually, needs_root, spec

pytestmark = needs_root


class Disk:
    """A filesystem with the folders of one overlay."""

    def __init__(self, path: Path, lower: Path) -> None:
        self.path = path
        path.mkdir()
        mount.mount_one(Mount("tmpfs", "tmpfs", ()), str(path))
        for name in ("upper", "work", "try"):
            (path / name).mkdir()
        folders = f"upperdir={path}/upper", f"workdir={path}/work"
        self.options = [f"lowerdir={lower}", *folders, "index=off"]

    def is_free(self) -> bool:
        """Whether no overlay uses the folders: with ``index=on`` the kernel refuses another one."""
        strict = [*self.options[:-1], "index=on"]
        try:
            mount.mount_one(Mount("overlay", "overlay", tuple(strict)), f"{self.path}/try")
        except Unknown as error:
            assert "busy" in str(error)
            return False
        mount.unmount_all(f"{self.path}/try")
        return True


@pytest.fixture
def disks(tmp_path: Path, rootfs: Path) -> Iterator[list[Disk]]:
    made = [Disk(tmp_path / name, rootfs) for name in ("one", "two")]
    yield made
    for disk in made:
        mount.unmount_all(str(disk.path))


async def create(shim: Shim, disk: Disk, id: str = "") -> v3.CreateTaskResponse:
    """A container of the shim; with an id, a further one."""
    bundle = shim.room.base / (id or shim.id)
    if id:
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(spec(id, ["/bin/sleep", "600"])))
    request = v3.CreateTaskRequest(id=id or shim.id, bundle=str(bundle))
    request.rootfs.add(type="overlay", source="overlay", options=disk.options)
    return await shim.call("Create", v3.CreateTaskResponse, request)


def mounted(shim: Shim) -> bool:
    return str(shim.bundle / "rootfs") in mount.mount_points()


async def test_out_of_sight_at_once_and_gone_soon(shims: ShimRoom, disks: list[Disk]) -> None:
    shim = await shims.shim("one", "/bin/true")
    await create(shim, disks[0])
    assert mounted(shim)
    assert not disks[0].is_free()
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()
    assert not mounted(shim)
    await eventually(disks[0].is_free)
    assert Path(f"/proc/{shim.pid}").exists(), "nobody has told it to end"


async def test_the_next_one_may_have_the_same(shims: ShimRoom, disks: list[Disk]) -> None:
    shim = await shims.shim("one", "/bin/true")
    for _ in range(3):
        await create(shim, disks[0])
        await shim.start()
        assert await shim.wait() == 0
        await shim.delete()
        assert not mounted(shim)
    await eventually(disks[0].is_free)


async def test_gone_while_the_shim_holds_another(shims: ShimRoom, disks: list[Disk]) -> None:
    shim = await shims.shim("one", "/bin/true")
    await create(shim, disks[0])
    await create(shim, disks[1], "two")
    try:
        await shim.start()
        assert await shim.wait() == 0
        await shim.delete()
        await eventually(disks[0].is_free)
        request = v3.StateRequest(id="two")
        assert (await shim.call("State", v3.StateResponse, request)).pid
        assert not disks[1].is_free()
    finally:
        await shim.call("Delete", v3.DeleteResponse, v3.DeleteRequest(id="two"))
    await eventually(disks[1].is_free)
