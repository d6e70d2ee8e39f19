"""An OCI runtime that hangs is killed after a time, and holds up nobody; one that is slow makes
one container, however many ask for it and however soon they go away."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Supervisord, alive, remove_cgroups
from tests.conformance.fixtures import IMAGE, Shop
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire

from .fakes import HANG, FakeRuntime
from .residue import Residue
from .test_runtime_fails import VERBS, Stage

SECONDS = 4
"""After this time a command of the runtime is killed."""


class Impatient(Supervisord):
    """A daemon that kills runtimes early."""

    def command(self) -> list[str]:
        words = super().command()
        with open(words[words.index("--config") + 1], "a") as config:
            config.write(
                f'[plugins."io.containerd.runtime.v2.task"]\nruntime_timeout = "{SECONDS}s"\n'
            )
        return words


@pytest.fixture
def impatient(image: Image, image_tar: Path) -> Iterator[tuple[Supervisord, Shop]]:
    daemon = Impatient()
    namespace = f"sdhang-{uuid.uuid4().hex[:8]}"
    try:
        daemon.start(timeout=60)
        ctr, wire = Ctr(daemon.address, namespace), Wire(daemon.address, namespace, ours=True)
        ctr("i", "import", str(image_tar))
        try:
            yield daemon, Shop(namespace, ctr, wire, IMAGE, image.chain_ids[-1])
            sweep.namespace(wire)
        finally:
            wire.close()
    finally:
        remove_cgroups(f"/{namespace}")
        daemon.close()


@pytest.mark.parametrize("name", ["runc", "fake"])
def test_a_runtime_that_hangs(
    impatient: tuple[Supervisord, Shop], tmp_path: Path, name: str
) -> None:
    """At every verb, one container for each, all at the same time."""
    daemon, shop = impatient
    bystander = Stage(shop, "bystander", FakeRuntime(tmp_path / "bystander", name))
    bystander.live()
    residue = Residue(daemon, shop.namespace)
    stages = {verb: Stage(shop, f"c-{verb}", FakeRuntime(tmp_path / verb, name)) for verb in VERBS}
    with concurrent.futures.ThreadPoolExecutor(len(VERBS)) as pool:
        told = {}
        for verb, stage in stages.items():
            request = stage.request(verb)
            stage.fake.tell({verb: [HANG]})
            told[verb] = pool.submit(words, request)
        deadline = time.monotonic() + 30
        while not any(stage.fake.hanging() for stage in stages.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bystander.live()  # is over before the first of those that hang has been given up
        assert not all(future.done() for future in told.values())
        answers = {verb: future.result(60) for verb, future in told.items()}
    for verb, stage in stages.items():
        hung = stage.fake.hanging()
        assert bool(hung) == bool(answers[verb]), (verb, answers[verb])
        if hung:
            assert f"{stage.fake.path} {verb}" in answers[verb]
        assert not [pid for pid in hung if alive(pid)], verb
        stage.fake.tell({})
        stage.remove()
    residue.expect_none(*(stage.id for stage in stages.values()))
    for stage in stages.values():
        stage.live()
    residue.expect_none(*(stage.id for stage in stages.values()))


def words(request: Callable[[], object]) -> str:
    """What a request is refused with, "" where it succeeds."""
    try:
        request()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return str(error.details())
    return ""


# Creates that take long -----------------------------------------------------------------------


@pytest.fixture
def slow(shop: Shop, unique: str, tmp_path: Path) -> Stage:
    """A container whose creation takes a second; what is left of it is removed by ``shop``."""
    stage = Stage(shop, unique, FakeRuntime(tmp_path / "bin", "runc"))
    stage.fake.tell({"create": [{"delay": 1.0}]})
    return stage


def begun(stage: Stage, calls: int = 1) -> None:
    """Waits until the runtime is at it."""
    deadline = time.monotonic() + 20
    while len(stage.fake.calls("create")) < calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def create_request(stage: Stage) -> pb.CreateTaskRequest:
    """The same each time."""
    mounts = stage.wire.snapshots.Mounts(
        snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=stage.id)
    ).mounts
    options = stage.fake.options()
    return pb.CreateTaskRequest(container_id=stage.id, rootfs=mounts, options=options)


@contextlib.contextmanager
def another_client(stage: Stage) -> Iterator[Wire]:
    wire = stage.wire.scoped()
    try:
        yield wire
    finally:
        wire.close()


only_ours = pytest.mark.only("supervisord", reason="containerd refuses to create twice at a time")


@only_ours
def test_two_clients_create_one_container(slow: Stage) -> None:
    request = create_request(slow)
    with another_client(slow) as other:
        first = slow.wire.tasks.Create.future(request)
        begun(slow)
        pid = other.tasks.Create(request).pid
        assert first.result(20).pid == pid
        with other.refused(grpc.StatusCode.ALREADY_EXISTS, slow.id):
            other.tasks.Create(request)
    assert slow.fake.calls("create") == ["create real"]
    assert slow.wire.start(slow.id) == pid


@only_ours
@pytest.mark.parametrize("how", ["cancelled", "late", "dead"])
def test_a_retry_finds_what_a_lost_client_began(slow: Stage, how: str) -> None:
    request = create_request(slow)
    with another_client(slow) as other:
        if how == "late":
            with pytest.raises(grpc.RpcError):
                other.tasks.Create(request, timeout=0.5)
        else:
            lost = other.tasks.Create.future(request)
            begun(slow)
            if how == "cancelled":
                lost.cancel()
    pid = slow.wire.tasks.Create(request).pid
    assert slow.fake.calls("create") == ["create real"]
    assert slow.wire.start(slow.id) == pid


@only_ours
def test_another_create_replaces_what_a_lost_client_began(slow: Stage) -> None:
    request = create_request(slow)
    lost = slow.wire.tasks.Create.future(request)
    begun(slow)
    lost.cancel()
    request.stdout = "file:///dev/null"
    pid = slow.wire.tasks.Create(request).pid
    assert slow.fake.calls("create") == ["create real", "create real"]
    assert slow.wire.start(slow.id) == pid


@only_ours
def test_creates_at_a_time_fail_together_and_the_next_works(slow: Stage) -> None:
    slow.fake.tell({"create": [{"delay": 1.0, "end": "fail", "status": 5}]})
    request = create_request(slow)
    with another_client(slow) as other:
        first = slow.wire.tasks.Create.future(request)
        begun(slow)
        with pytest.raises(grpc.RpcError, match="exit status 5"):
            other.tasks.Create(request)
        with pytest.raises(grpc.RpcError, match="exit status 5"):
            first.result(20)
    assert slow.fake.calls("create") == ["create fail"]
    slow.wire.tasks.Create(request)


@pytest.mark.only("supervisord", reason="containerd's list waits for the shim that creates")
def test_deleted_while_it_is_made_means_not_found(slow: Stage) -> None:
    """And neither a list nor another container waits for it."""
    request = create_request(slow)
    first = slow.wire.tasks.Create.future(request)
    begun(slow)
    assert slow.id not in slow.wire.tasks_by_id()
    with slow.wire.refused(grpc.StatusCode.NOT_FOUND, slow.id):
        slow.wire.delete_task(slow.id)
    assert not first.done()
    first.result(20)
