"""The mount manager over real mounts: what is made, what is left, what a restart finds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest

from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from supervisord.contracts.mounts import ActivateOptions, Activation, ActiveMount, MountHandler
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.linux.mount import mount_points, mounted
from supervisord.mounting import handlers
from supervisord.mounting import manager as module
from supervisord.mounting.handlers import ErofsHandler, LoopHandler
from supervisord.mounting.manager import Manager
from tests.disks import command, devices_of

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.blocks("it looks at mounts"),
]

SCOPE = Scope("ns")
Opener = Callable[[], AbstractAsyncContextManager[Manager]]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """The folder that is left to the next manager; emptied at the end, whatever it holds."""
    yield tmp_path / "state"
    for point in reversed(mount_points()):
        if point.startswith(f"{tmp_path}/"):
            command(["umount", "-l", point])
    for link in tmp_path.glob("state/t/*/*"):
        if link.is_symlink():
            asyncio.run(LoopHandler().unmount(str(link)))


@pytest.fixture
def opener(state: Path, tmp_path: Path) -> Opener:
    @asynccontextmanager
    async def open_one() -> AsyncIterator[Manager]:
        known: dict[str, MountHandler] = {"loop": LoopHandler(), "erofs": ErofsHandler()}
        opened = await Manager.open(state, known, [str(tmp_path / "allowed")])
        try:
            yield opened
        finally:
            await opened.close()

    return open_one


@pytest.fixture
async def mounts(opener: Opener) -> AsyncIterator[Manager]:
    async with opener() as opened:
        yield opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("in an image")
    command(["mkfs.erofs", "--quiet", str(tmp_path / "erofs.img"), str(tmp_path / "tree")])
    return tmp_path / "erofs.img"


def nothing_left(state: Path) -> bool:
    return os.listdir(state / "t") == [] and not any(
        point.startswith(str(state)) for point in mount_points()
    )


def stack(image: Path, tmp_path: Path) -> list[Mount]:
    for name in ("up", "work"):
        (tmp_path / name).mkdir()
    options = (f"upperdir={tmp_path}/up", f"workdir={tmp_path}/work")
    lower = "lowerdir={{ overlay 0 1 }}"
    layers = [Mount("erofs", str(image), ("ro", "loop")) for _ in range(2)]
    return [*layers, Mount("format/mkdir/overlay", "overlay", (*options, lower))]


async def test_layers_and_the_overlay_that_is_left(
    mounts: Manager, state: Path, tmp_path: Path, image: Path
) -> None:
    wanted = stack(image, tmp_path)
    made = await mounts.activate(SCOPE, "one", wanted, ActivateOptions({"l": "1"}))
    first, second = made.active
    assert (Path(first.mount_point) / "file").read_text() == "in an image"
    assert first.mount == wanted[0]
    (system,) = made.system
    lower = f"lowerdir={first.mount_point}:{second.mount_point}"
    assert system == Mount("overlay", "overlay", (*wanted[2].options[:2], lower))
    assert mounts.info("ns", "one") == made
    assert mounts.list("ns", ["labels.l==1"]) == [made]
    assert mounts.list("ns", ["name==other"]) == []
    assert mounts.list("other") == []
    with pytest.raises(AlreadyExists):
        await mounts.activate(SCOPE, "one", wanted)
    with pytest.raises(NotFound):
        await mounts.deactivate("other", "one")
    await mounts.deactivate("ns", "one")
    assert nothing_left(state)
    with pytest.raises(NotFound):
        mounts.info("ns", "one")
    with pytest.raises(NotFound):
        await mounts.deactivate("ns", "one")


async def test_what_ends_is_seen_by_nobody(mounts: Manager, image: Path) -> None:
    made = await mounts.activate(SCOPE, "one", [Mount("erofs", str(image), ("loop",))])
    ending = mounts.deactivate("ns", "one", only=made)
    with pytest.raises(NotFound):
        mounts.info("ns", "one")
    assert mounts.list("ns") == []
    await ending
    assert not os.path.ismount(made.active[0].mount_point)


async def test_system_mounts_are_nobody_elses(mounts: Manager, state: Path) -> None:
    for wanted in ([], [Mount("bind", "/")], [Mount("overlay", "o"), Mount("no/such", "x")]):
        assert not mounts.wanted(wanted)
        with pytest.raises(Unimplemented):
            await mounts.activate(SCOPE, "one", wanted)
    options = ActivateOptions(allowed=["erofs"])
    assert not mounts.wanted([Mount("erofs", "x")], options)
    assert nothing_left(state)


async def test_all_is_mounted_for_a_while(mounts: Manager, state: Path, image: Path) -> None:
    options = ActivateOptions(temporary=True)
    (made, again) = [
        await mounts.activate(SCOPE, name, wanted, options)
        for name, wanted in (
            ("kernel", [Mount("tmpfs", "tmpfs")]),
            ("erofs", [Mount("erofs", str(image))]),
        )
    ]
    (active,) = made.active
    assert made.system == [Mount("bind", active.mount_point, ("rbind",))]
    assert (Path(again.system[0].source) / "file").exists()
    await mounts.deactivate("ns", "kernel")
    await mounts.deactivate("ns", "erofs")
    assert nothing_left(state)


async def test_a_device_with_a_file_system_of_its_own(
    mounts: Manager, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "allowed").mkdir()
    file = tmp_path / "allowed/disk.img"
    wanted = [
        Mount(
            "mkfs/loop", str(file), ("X-containerd.mkfs.size=16MiB", "X-containerd.mkfs.fs=ext4")
        ),
        Mount("format/ext4", "{{ source 0 }}"),
        Mount(
            "format/mkdir/bind",
            "{{ mount 1 }}/upper",
            ("X-containerd.mkdir.path={{ mount 1 }}/upper:0751:3:4", "rbind"),
        ),
    ]
    made = await mounts.activate(SCOPE, "disk", wanted)
    device, disk = made.active
    assert devices_of(file) == [Path(device.mount_point).readlink().name]
    (bind,) = made.system
    assert bind == Mount("bind", f"{disk.mount_point}/upper", ("rbind",))
    found = Path(bind.source).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (3, 4, 0o751)
    (Path(bind.source) / "file").write_text("kept")
    await mounts.deactivate("ns", "disk")
    assert nothing_left(state)
    assert devices_of(file) == []
    assert [path.name for path in (tmp_path / "allowed").iterdir()] == ["disk.img"]
    made = await mounts.activate(SCOPE, "disk", wanted)
    assert (Path(made.system[0].source) / "file").read_text() == "kept"
    await mounts.deactivate("ns", "disk")


@pytest.mark.parametrize(
    ("wanted", "kind", "says"),
    [
        (Mount("format/bind", "{{ mount 0 }}"), InvalidArgument, "out of bounds"),
        (Mount("mkdir/bind", "/", ("X-containerd.mkdir.path=/etc/no",)), InvalidArgument, "root"),
        (Mount("mkdir/bind", "/", ("X-containerd.mkdir.other=x",)), InvalidArgument, "invalid"),
        (Mount("mkdir/bind", "/", ("X-containerd.mkdir.path=/a:9",)), InvalidArgument, "number"),
        (Mount("mkdir/bind", "/", ("X-containerd.mkdir.path=/a:1:2",)), InvalidArgument, "inval"),
        (Mount("mkdir/bind", "/", ("X-containerd.mkdir.path=/a:7777",)), InvalidArgument, "mode"),
        (Mount("mkfs/loop", "/etc/no", ("X-containerd.mkfs.size=1",)), InvalidArgument, "root"),
        (Mount("mkfs/loop", "ALLOWED/x", ()), InvalidArgument, "requires"),
        (Mount("mkfs/loop", "ALLOWED/x", ("X-containerd.mkfs.size=",)), InvalidArgument, "requi"),
        (Mount("mkfs/loop", "ALLOWED/x", ("X-containerd.mkfs.size=big",)), InvalidArgument, "big"),
        (Mount("mkfs/loop", "ALLOWED/x", ("X-containerd.mkfs.no=1",)), InvalidArgument, "unknown"),
        (Mount("mkfs/loop", "ALLOWED/x", ("X-containerd.mkfs.fs=ntfs",)), InvalidArgument, "ntfs"),
        (Mount("mkfs/loop", "ALLOWED/x", ("X-containerd.mkfs.size=4k",)), Unknown, "mkfs.ext4"),
        (Mount("loop", "/no/such/file"), Unknown, "No such file"),
        (Mount("erofs", "/no/such/file"), Unknown, "no such file"),
        (Mount("erofs", "/x", ("X-containerd.dmverity=/y",)), InvalidArgument, "dm-verity"),
    ],
)
async def test_what_fails_leaves_nothing(
    mounts: Manager,
    state: Path,
    tmp_path: Path,
    image: Path,
    wanted: Mount,
    kind: type[Error],
    says: str,
) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/link").symlink_to("/etc")
    source = wanted.source.replace("ALLOWED", str(tmp_path / "allowed"))
    failing = [Mount(wanted.type, source, wanted.options)]
    if "{{" not in source:
        failing.insert(0, Mount("erofs", str(image)))
    for _ in range(2):
        with pytest.raises(kind, match=says):
            await mounts.activate(SCOPE, "one", failing)
    assert nothing_left(state)
    assert [path.name for path in (tmp_path / "allowed").iterdir()] == ["link"]
    await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))])
    await mounts.deactivate("ns", "one")


async def test_symlinks_lead_nowhere(mounts: Manager, state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/link").symlink_to(outside)
    for path in ("link/new", "../outside/new", "link/../../outside/new"):
        option = f"X-containerd.mkdir.path={tmp_path}/allowed/{path}"
        with pytest.raises(Error):
            await mounts.activate(SCOPE, "one", [Mount("mkdir/bind", "/", (option,))])
    assert list(outside.iterdir()) == []
    assert nothing_left(state)


async def test_one_of_many_wins_a_name(mounts: Manager, state: Path, image: Path) -> None:
    wanted = [Mount("erofs", str(image))]
    tries = [mounts.activate(SCOPE, "one", wanted) for _ in range(5)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["Activation", *["AlreadyExists"] * 4]
    await mounts.deactivate("ns", "one")
    assert nothing_left(state)


async def test_a_caller_that_goes_away_leaves_a_whole_activation(
    mounts: Manager, state: Path, image: Path
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(ErofsHandler):
        async def mount(
            self, mount: Mount, target: str, active: Sequence[ActiveMount]
        ) -> ActiveMount:
            begun.set()
            await go_on.wait()
            return await super().mount(mount, target, active)

    with mock.patch.dict(mounts._handlers, {"erofs": Slow()}):
        caller = asyncio.ensure_future(mounts.activate(SCOPE, "one", [Mount("erofs", str(image))]))
        await begun.wait()
        assert [each.active for each in mounts.resources()] == [True], "not to be collected yet"
        with pytest.raises(NotFound):
            mounts.info("ns", "one")
        caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
        go_on.set()
        await mounts.deactivate("ns", "one")  # waits for it
    assert nothing_left(state)


async def test_labels_change(mounts: Manager, image: Path) -> None:
    options = ActivateOptions({"a": "1", "b": "2"})
    await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))], options)
    wanted = Activation("one", labels={"a": "3", "c": "4"})
    assert (await mounts.update("ns", wanted, ["labels.a"])).labels == {"a": "3", "b": "2"}
    assert (await mounts.update("ns", wanted, ())).labels == {"a": "3", "c": "4"}
    assert mounts.info("ns", "one").labels == {"a": "3", "c": "4"}
    with pytest.raises(InvalidArgument, match="cannot update field 'active'"):
        await mounts.update("ns", wanted, ["active"])
    with pytest.raises(NotFound):
        await mounts.update("ns", Activation("other"), ())
    await mounts.deactivate("ns", "one")


# Restarts -----------------------------------------------------------------------------------


async def test_a_restart_knows_what_is_active(opener: Opener, state: Path, image: Path) -> None:
    async with opener() as mounts:
        options = ActivateOptions({"l": "1"})
        made = await mounts.activate(
            Scope("ns", "lease"), "one", [Mount("erofs", str(image))], options
        )
    assert mounted(made.active[0].mount_point)
    async with opener() as mounts:
        assert mounts.info("ns", "one") == made
        (resource,) = mounts.resources()
        assert (resource.lease, resource.labels, resource.active) == ("lease", {"l": "1"}, False)
        await mounts.collect(resource)
        assert nothing_left(state)
        await mounts.collect(resource)


async def test_a_restart_takes_away_what_is_half_made(
    opener: Opener, state: Path, tmp_path: Path, image: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    async with opener() as mounts:
        died = mock.AsyncMock(side_effect=Unavailable("died"))
        wanted = [Mount("erofs", str(image)), Mount("loop", str(file)), Mount("loop", "/none")]
        with mock.patch.object(Manager, "_end", died), pytest.raises(Error):
            await mounts.activate(SCOPE, "one", wanted)
        kept = await mounts.activate(SCOPE, "kept", [Mount("erofs", str(image))])
        assert len(devices_of(file)) == 1
    stray = state / "t/77"
    stray.mkdir()
    await ErofsHandler().mount(Mount("erofs", str(image)), str(stray / "0"), ())
    async with opener() as mounts:
        assert devices_of(file) == []
        assert os.listdir(state / "t") == [Path(kept.active[0].mount_point).parent.name]
        assert mounts.list("ns") == [kept]
        await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))])
        await mounts.deactivate("ns", "one")
        await mounts.deactivate("ns", "kept")
    assert nothing_left(state)


async def test_mounts_end_with_the_machine(opener: Opener, state: Path, image: Path) -> None:
    async with opener() as mounts:
        made = await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))])
    command(["umount", made.active[0].mount_point])
    boot = state / "boot_id"
    boot.write_text("another\n")
    with mock.patch.object(module, "_BOOT", boot):
        async with opener() as mounts:
            assert mounts.list("ns") == []
            assert nothing_left(state)


async def test_what_cannot_be_unmounted_is_tried_again(
    mounts: Manager, state: Path, image: Path
) -> None:
    await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))])
    busy = mock.Mock(side_effect=Unavailable("busy"))
    with mock.patch.object(handlers, "unmount_all", busy):
        with pytest.raises(Unavailable):
            await mounts.deactivate("ns", "one")
        with pytest.raises(Unavailable):
            await mounts.activate(SCOPE, "one", [Mount("erofs", str(image))])
    with pytest.raises(NotFound):
        mounts.info("ns", "one")
    (resource,) = mounts.resources()
    await mounts.collect(resource)
    assert nothing_left(state)


async def test_a_device_that_is_another_ones_by_now(
    mounts: Manager, state: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(bytes(1 << 20))
    made = await mounts.activate(SCOPE, "a", [Mount("loop", str(files[0]))])
    other = await mounts.activate(SCOPE, "b", [Mount("loop", str(files[1]))])
    link = Path(made.active[0].mount_point)
    (device,) = devices_of(files[1])
    own = link.readlink()
    link.unlink()
    link.symlink_to(f"/dev/{device}")
    await mounts.deactivate("ns", "a")
    assert len(devices_of(files[1])) == 1, "it was let alone"
    await mounts.deactivate("ns", "b")
    assert devices_of(files[1]) == []
    assert other.active
    command(["losetup", "-d", str(own)])


async def test_for_a_while(mounts: Manager, state: Path, tmp_path: Path, image: Path) -> None:
    plain = [Mount("bind", "/")]
    async with mounts.for_a_while(SCOPE, plain) as found:
        assert found == plain
    async with mounts.for_a_while(SCOPE, stack(image, tmp_path)) as found:
        assert [mount.type for mount in found] == ["overlay"]
        assert [each.active for each in mounts.resources()] == [True]
        assert not nothing_left(state)
    assert nothing_left(state)
    assert mounts.resources() == []
