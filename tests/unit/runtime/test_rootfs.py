"""Root filesystems that need the mount manager: activated for a task, replaced, and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from protos.containerd.types import types_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import AlreadyExists, NotFound, Unavailable
from supervisord.contracts.mounts import ActivateOptions, Activation
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.tasks import CreateTask
from supervisord.mounting.plan import plan
from supervisord.runtime.rootfs import CONTAINER_LABEL, HANDLED, Rootfs

EROFS, OVERLAY = Mount("erofs", "a"), Mount("format/overlay", "overlay")
SYSTEM = Mount("overlay", "filled in")


class Manager:
    """A mount manager that mounts nothing."""

    def __init__(self) -> None:
        self.active: dict[tuple[str, str], Activation] = {}
        self.asked: list[ActivateOptions] = []
        self.ended: list[str] = []

    def wanted(self, mounts: Sequence[Mount], options: ActivateOptions | None = None) -> bool:
        allowed = options.allowed if options else ()
        return plan(mounts, ("erofs", "loop"), allowed=allowed) is not None

    async def activate(
        self, scope: Scope, name: str, mounts: Sequence[Mount], options: ActivateOptions
    ) -> Activation:
        assert (scope.namespace, name) not in self.active
        self.asked.append(options)
        made = Activation(name, (), (SYSTEM,), options.labels, len(self.asked))
        self.active[scope.namespace, name] = made
        return made

    async def deactivate(
        self, namespace: str, name: str, *, only: Activation | None = None
    ) -> None:
        found = self.active.get((namespace, name))
        if found is not None and (only is None or only.serial == found.serial):
            self.ended.append(name)
            del self.active[namespace, name]

    def info(self, namespace: str, name: str) -> Activation:
        if (namespace, name) not in self.active:
            raise NotFound(name)
        return self.active[namespace, name]


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
async def rootfs(manager: Manager) -> AsyncIterator[Rootfs]:
    owner = TaskOwner("test")
    yield Rootfs(cast("Any", manager), cast("Any", None), owner)
    await owner.close(5)


def request(*mounts: Mount) -> CreateTask:
    return CreateTask("box", rootfs=mounts)


async def ready(rootfs: Rootfs, wanted: CreateTask, binary: str = "") -> CreateTask:
    async with AsyncExitStack() as undo:
        made = await rootfs.ready("ns", "box", wanted, binary, undo)
        undo.pop_all()
    return made


async def test_what_our_shim_mounts_by_itself(manager: Manager, rootfs: Rootfs) -> None:
    for wanted in (request(Mount("bind", "/")), request(EROFS), request()):
        assert await ready(rootfs, wanted) is wanted
    none = Rootfs(None, cast("Any", None), TaskOwner("none"))
    wanted = request(EROFS, OVERLAY)
    assert await ready(none, wanted) is wanted
    none.release("ns", "box")
    assert manager.asked == []


async def test_a_task_has_what_it_needs_and_gives_it_back(manager: Manager, rootfs: Rootfs) -> None:
    made = await ready(rootfs, request(EROFS, OVERLAY))
    assert made.rootfs == (SYSTEM,)
    assert manager.asked == [ActivateOptions({CONTAINER_LABEL: "box"}, allowed=("erofs",))]
    rootfs.release("ns", "other")
    rootfs.release("ns", "box")
    made = await ready(rootfs, request(EROFS, OVERLAY))  # before that has had its turn
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(manager.active) == 1, "the new one is let alone"
    assert len(manager.asked) == 2


async def test_a_creation_that_fails_gives_it_back(manager: Manager, rootfs: Rootfs) -> None:
    with pytest.raises(Unavailable):
        async with AsyncExitStack() as undo:
            await rootfs.ready("ns", "box", request(EROFS, OVERLAY), "", undo)
            raise Unavailable("the shim")
    assert manager.active == {}


async def test_what_is_in_the_way(manager: Manager, rootfs: Rootfs) -> None:
    stale = Activation("box", (), (Mount("bind", "of another snapshot"),), {CONTAINER_LABEL: "box"})
    manager.active["ns", "box"] = stale
    assert (await ready(rootfs, request(EROFS, OVERLAY))).rootfs == (SYSTEM,)
    assert manager.ended == ["box"]
    client = Activation("box", (), (), {})
    manager.active["ns", "box"] = client
    with pytest.raises(AlreadyExists, match="box"):
        await ready(rootfs, request(EROFS, OVERLAY))
    rootfs.release("ns", "box")
    assert manager.active["ns", "box"] is client


@pytest.mark.parametrize(
    ("handled", "asked"),
    [("erofs, format/*", 0), ("format/overlay,erofs", 0), ("erofs", 1), ("", 1), (None, 1)],
)
async def test_foreign_shims_tell_what_they_mount(
    manager: Manager, rootfs: Rootfs, tmp_path: Path, handled: str | None, asked: int
) -> None:
    shim = tmp_path / "containerd-shim-far-v1"
    if handled is None:
        shim.write_text("#!/bin/sh\nexit 3\n")
    else:
        info = types_pb2.RuntimeInfo(name="far", annotations={HANDLED: handled})
        (tmp_path / "info").write_bytes(info.SerializeToString())
        shim.write_text(f'#!/bin/sh\n[ "$1" = -info ] && cat {tmp_path}/info\n')
    shim.chmod(0o755)
    await ready(rootfs, request(EROFS, OVERLAY), str(shim))
    assert len(manager.asked) == asked
