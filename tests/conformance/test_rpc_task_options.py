"""``containerd.runc.v1.Options``, each of them, and what is no such message.

What a runtime is called with is read off a wrapper around runc that writes its arguments down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb

from .daemons import cgroup_folders, parent_of, remove_cgroups
from .fixtures import Shop

Code = grpc.StatusCode
Options = options_pb2.Options


def packed(message: Message) -> AnyMessage:
    name = message.DESCRIPTOR.full_name
    return AnyMessage(type_url=name, value=message.SerializeToString())


class Wrapper:
    """A runtime that is runc, and keeps each of its command lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "wrapped"
        self.kept = folder / "arguments"
        self.path.write_text(f'#!/bin/sh\necho "$@" >> {self.kept}\nexec runc "$@"\n')
        self.path.chmod(0o755)

    def of(self, verb: str) -> list[str]:
        """The words of the first call of a verb."""
        lines = [line.split() for line in self.kept.read_text().splitlines()]
        return next(words for words in lines if verb in words)


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)


def run(shop: Shop, id: str, options: Options, *arguments: str, **more: Any) -> int:
    """The exit status of a container that was made with these options."""
    wire = shop.wire
    wire.container(
        id, arguments or ("true",), parent=shop.chain_id, change=more.pop("change", None)
    )
    wire.create_task(id, options=packed(options), **more)
    wire.start(id)
    return wire.wait(id)


@pytest.mark.parametrize(
    ("field", "flag"),
    [("no_pivot_root", "--no-pivot"), ("no_new_keyring", "--no-new-keyring")],
)
def test_flags_of_create(shop: Shop, unique: str, wrapper: Wrapper, field: str, flag: str) -> None:
    for value in (True, False):
        options = Options(binary_name=str(wrapper.path))
        setattr(options, field, value)
        assert run(shop, unique, options, "sh", "-c", "exit 3") == 3
        assert (flag in wrapper.of("create")) == value
        assert shop.wire.delete_task(unique) == 3
        shop.wire.delete_container(unique)
        wrapper.kept.unlink()


def test_root_holds_the_state_of_the_runtime(
    shop: Shop, unique: str, wrapper: Wrapper, tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    wire.create_task(unique, options=packed(Options(binary_name=str(wrapper.path), root=str(root))))
    folder = root / shop.namespace / unique
    assert folder.is_dir()
    words = wrapper.of("create")
    assert words[words.index("--root") + 1] == str(folder.parent)
    assert "--systemd-cgroup" not in words
    wire.start(unique)
    wire.kill(unique)
    wire.wait(unique)
    wire.delete_task(unique)
    assert not folder.exists()


def test_a_binary_that_is_not_there(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    with pytest.raises(grpc.RpcError, match="no-such-runtime"):
        wire.create_task(unique, options=packed(Options(binary_name="no-such-runtime")))
    wire.create_task(unique)
    wire.kill(unique)


def test_options_of_the_container_hold_where_the_task_has_none(
    shop: Shop, unique: str, wrapper: Wrapper
) -> None:
    wire = shop.wire
    wire.container(unique, ["true"], parent=shop.chain_id)
    record = wire.containers.Get(containers_pb2.GetContainerRequest(id=unique)).container
    wire.containers.Delete(containers_pb2.DeleteContainerRequest(id=unique))
    record.runtime.options.CopyFrom(packed(Options(binary_name=str(wrapper.path))))
    wire.containers.Create(containers_pb2.CreateContainerRequest(container=record))
    wire.create_task(unique)
    assert unique in wrapper.of("create")
    wire.start(unique)
    assert wire.wait(unique) == 0
    wire.delete_task(unique)
    wrapper.kept.unlink()
    wire.create_task(unique, options=packed(Options(binary_name="runc")))
    assert not wrapper.kept.exists()
    wire.kill(unique)


def test_io_belongs_to_the_user_that_is_named(shop: Shop, unique: str, tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    os.mkfifo(out)
    os.mkfifo(errors)  # containerd opens both or fails
    reader, other = (os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (out, errors))

    def as_user(document: dict[str, Any]) -> None:
        document["process"]["user"] = {"uid": 1234, "gid": 4321}

    try:
        options = Options(io_uid=1234, io_gid=4321)
        script = "stat -L -c '%u %g' /proc/self/fd/1; echo again > /proc/self/fd/1"
        status = run(
            shop,
            unique,
            options,
            "sh",
            "-c",
            script,
            change=as_user,
            stdout=str(out),
            stderr=str(errors),
        )
        shop.wire.delete_task(unique)
        assert status == 0
        assert os.read(reader, 4096) == b"1234 4321\nagain\n"
    finally:
        os.close(reader)
        os.close(other)


@contextlib.contextmanager
def cgroup(path: str) -> Iterator[Callable[[int], bool]]:
    """A control group in every hierarchy that can have one; tells whether a process is in it."""
    top = Path("/sys/fs/cgroup")
    unified = (top / "cgroup.controllers").exists()
    names = ("memory", "pids", "cpu", "freezer")
    for folder in [top] if unified else [top / name for name in names if (top / name).is_dir()]:
        (folder / path.strip("/")).mkdir()
    try:
        yield lambda pid: any(
            str(pid) in (folder / "cgroup.procs").read_text().split()
            for folder in cgroup_folders(path)
        )
    finally:
        remove_cgroups(path)


def test_the_shim_joins_its_cgroup(shop: Shop, unique: str) -> None:
    wire = shop.wire
    with cgroup(f"/shims-{unique}") as contains:
        wire.container(unique, parent=shop.chain_id)
        options = Options(shim_cgroup=f"/shims-{unique}")
        pid = wire.create_task(unique, options=packed(options))
        assert contains(parent_of(pid))
        assert not contains(pid)
        wire.kill(unique)
        wire.wait(unique)
        wire.delete_task(unique)


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_groups_of_systemd_need_systemd(shop: Shop, unique: str) -> None:
    def systemds(document: dict[str, Any]) -> None:
        document["linux"]["cgroupsPath"] = f"system.slice:test:{unique}"

    wire = shop.wire
    wire.container(unique, parent=shop.chain_id, change=systemds)
    with wire.refused(Code.FAILED_PRECONDITION, "systemd_cgroup", reference=Code.UNKNOWN):
        wire.create_task(unique, options=packed(Options(systemd_cgroup=True)))
    assert unique not in wire.tasks_by_id()


@pytest.mark.parametrize(
    "options",
    [
        AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff\xff\xff"),
        packed(options_pb2.CheckpointOptions(exit=True)),
    ],
    ids=["malformed", "another message"],
)
def test_what_is_no_options(shop: Shop, unique: str, options: AnyMessage) -> None:
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    with wire.refused(Code.INVALID_ARGUMENT, "options", reference=Code.UNKNOWN):
        wire.create_task(unique, options=options)
    assert unique not in wire.tasks_by_id()


def test_the_runtime_of_a_task_is_not_that_of_its_container(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    with pytest.raises(grpc.RpcError, match="nobody"):
        wire.create_task(unique, runtime_path="io.containerd.nobody.v9")
    wire.create_task(unique, runtime_path="io.containerd.runc.v2")
    wire.kill(unique)


# --- checkpoints: what is refused before anything happens -----------------------------------------


def checkpoint(shop: Shop, id: str, options: AnyMessage | None = None) -> None:
    shop.wire.tasks.Checkpoint(pb.CheckpointTaskRequest(container_id=id, options=options))


def test_checkpoints_where_they_cannot_be(shop: Shop, unique: str) -> None:
    """A created task has nothing to write down, an absent one even less."""
    wire = shop.wire
    with wire.refused(Code.NOT_FOUND, unique):
        checkpoint(shop, unique)
    wire.container(unique, parent=shop.chain_id)
    wire.create_task(unique, options=packed(Options(binary_name="runc")))
    with wire.refused(Code.FAILED_PRECONDITION, "created", reference=Code.UNKNOWN):
        checkpoint(shop, unique)
    wire.start(unique)
    with wire.refused(Code.INVALID_ARGUMENT, "CheckpointOptions", reference=Code.UNKNOWN):
        checkpoint(shop, unique, packed(Options()))
    assert wire.tasks.Get(pb.GetRequest(container_id=unique)).process.pid
    wire.kill(unique)
    wire.wait(unique)
    with wire.refused(Code.FAILED_PRECONDITION, "stopped", reference=Code.UNKNOWN):
        checkpoint(shop, unique)


def test_restores_of_what_is_no_checkpoint(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    reference = Code.UNKNOWN
    config = b"not a checkpoint"
    descriptor = {"media_type": "text/plain", "digest": "sha256:" + "0" * 64, "size": len(config)}
    with wire.refused(Code.INVALID_ARGUMENT, "text/plain", reference=reference):
        wire.create_task(unique, checkpoint=descriptor)
    descriptor["media_type"] = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
    with wire.refused(Code.NOT_FOUND, "sha256", reference=reference):
        wire.create_task(unique, checkpoint=descriptor)
    assert unique not in wire.tasks_by_id()
    wire.create_task(unique)
    wire.kill(unique)
