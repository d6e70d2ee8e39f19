"""Pulls that fail or are given up: what came is there for the next one, for an hour.

Debian's containerd (1.6) has no Transfer service, so these are of ours alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.types.transfer import transfer_pb2 as types
from tests.clients.transferring import HERE, Mover, sending
from tests.conformance import sweep
from tests.conformance.daemons import running
from tests.conformance.ocitar import Image, Member, build
from tests.conformance.wire import Wire
from tests.registries.faults import Fault, Proxy, threaded
from tests.registries.server import Server, fill, needed, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

Lasting = Callable[[], AbstractContextManager[None]]
_EXPIRE = "containerd.io/gc.expire"


@pytest.fixture(scope="module")
def broken() -> Image:
    """An image whose second layer is no archive."""
    noise = random.Random(7).randbytes(300_000)  # noqa: S311 - the same each time
    return build([[Member("first", noise)], b"this is not a tar" * 1000])


@pytest.fixture(scope="module")
def sound() -> Image:
    noise = random.Random(8).randbytes(1_500_000)  # noqa: S311 - the same each time
    return build([[Member("small", b"1")], [Member("sound", noise)]])


@pytest.fixture(scope="module")
def registry(
    lasting: Lasting, broken: Image, sound: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("registry")
    with lasting(), server(folder) as found:
        fill(found, broken.write(folder / "broken.tar", "x:1"), "broken:1")
        fill(found, sound.write(folder / "sound.tar", "x:1"), "sound:1")
        yield found


@pytest.fixture
def faulty(registry: Server) -> Iterator[Proxy]:
    with threaded(registry.address) as found:
        yield found


@pytest.fixture
def mover(wire: Wire) -> Mover:
    return Mover(wire)


def _collect(wire: Wire) -> None:
    lease = wire.leases.Create(leases_pb2.CreateRequest()).lease
    wire.leases.Delete(leases_pb2.DeleteRequest(id=lease.id, sync=True))


def _blobs(wire: Wire) -> set[str]:
    pages = wire.content.List(content_pb2.ListContentRequest())
    return {info.digest for page in pages for info in page.info}


def _only_an_hour(wire: Wire) -> None:
    """There is one lease, and it ends by itself."""
    (lease,) = wire.leases.List(leases_pb2.ListRequest()).leases
    until = datetime.fromisoformat(lease.labels[_EXPIRE])
    left = until - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)


def test_a_failed_unpack_keeps_the_blobs(
    mover: Mover, wire: Wire, faulty: Proxy, broken: Image
) -> None:
    name = f"{faulty.address}/broken:1"
    faulty.faults.append(Fault(broken.layers[1], delay=1, times=1))  # the first one is whole then
    with wire.refused(grpc.StatusCode.DATA_LOSS, broken.layers[1]):
        mover.pull(name)
    assert not wire.images.List(images_pb2.ListImagesRequest()).images
    _only_an_hour(wire)
    _collect(wire)
    assert set(broken.layers) <= _blobs(wire)
    fetched = len(faulty.asked("/blobs/"))
    with wire.refused(grpc.StatusCode.DATA_LOSS, broken.layers[1]):
        mover.pull(name)
    assert len(faulty.asked("/blobs/")) == fetched
    mover.pull(name, snapshotter=None)  # without unpacking it is as good as any
    assert len(faulty.asked("/blobs/")) == fetched
    request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
    listed = {info.name for page in wire.snapshots.List(request) for info in page.info}
    assert listed <= {broken.chain_ids[0]}  # nothing half-made


def test_a_failed_import_keeps_the_blobs(
    mover: Mover, wire: Wire, broken: Image, tmp_path: Path
) -> None:
    archive = broken.write(tmp_path / "broken.tar", "x:1").read_bytes()
    unpack = types.UnpackConfiguration(platform=HERE, snapshotter="overlayfs")
    id, stream = sending(wire, archive)
    try:
        with wire.refused(grpc.StatusCode.DATA_LOSS, broken.layers[1]):
            mover.transfer(
                types.ImageImportStream(stream=id),
                types.ImageStore(name="n", platforms=[HERE], unpacks=[unpack]),
            )
    finally:
        stream.close()
    _only_an_hour(wire)
    _collect(wire)
    assert set(broken.blobs) <= _blobs(wire)


def test_a_client_that_goes_away_keeps_what_came(
    mover: Mover, wire: Wire, faulty: Proxy, sound: Image
) -> None:
    """Whole blobs and parts, also when a collection comes between."""
    faulty.faults.append(Fault(sound.layers[1], stall_after=1_200_000))
    name = f"{faulty.address}/sound:1"
    with wire.refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        mover.pull(name, timeout=3)
    _until(lambda: not _writing(wire))
    _only_an_hour(wire)
    _collect(wire)
    assert sound.layers[0] in _blobs(wire)
    faulty.faults.clear()
    faulty.seen.clear()
    mover.pull(name)
    (seen,) = faulty.asked("/blobs/")
    assert sound.layers[1] in seen.path
    assert int(seen.headers["range"].removeprefix("bytes=").removesuffix("-")) >= 1_000_000


def test_what_never_began_leaves_no_lease(mover: Mover, wire: Wire, registry: Server) -> None:
    with wire.refused(grpc.StatusCode.NOT_FOUND, "sound:2: not found"):
        mover.pull(f"{registry.address}/sound:2")
    assert not wire.leases.List(leases_pb2.ListRequest()).leases


def test_a_client_that_writes_the_blob_and_stalls(registry: Server, sound: Image) -> None:
    """Its ref stays its own, and nobody waits for it longer than a registry is waited for."""
    more = '[plugins."io.containerd.transfer.v1.local"]\nprogress_timeout = "1s"\n'
    with running("supervisord", more) as daemon:
        wire = Wire(daemon.address, "locked", ours=True)
        release = threading.Event()
        layer = sound.layers[1]

        def requests() -> Iterator[content_pb2.WriteContentRequest]:
            yield content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref=f"layer-{layer}", data=b"part"
            )
            release.wait()

        call = wire.content.Write(requests())
        try:
            next(call)
            begun = time.monotonic()
            Mover(wire).pull(f"{registry.address}/sound:1")
            assert time.monotonic() - begun >= 1
            (status,) = wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses
            assert (status.ref, status.offset) == (f"layer-{layer}", 4)
            assert layer in _blobs(wire)
        finally:
            release.set()
            call.cancel()
            sweep.namespace(wire)
            wire.close()


def test_a_registry_that_stalls(registry: Server, sound: Image) -> None:
    """Once: the rest is asked for. Always: that is told, and the next pull is good."""
    more = '[plugins."io.containerd.transfer.v1.local"]\nprogress_timeout = "1s"\n'
    with running("supervisord", more) as daemon, threaded(registry.address) as faulty:
        wire = Wire(daemon.address, "stalled", ours=True)
        name, layer = f"{faulty.address}/sound:1", sound.layers[1]
        try:
            faulty.faults.append(Fault(layer, stall_after=600_000, times=1))
            Mover(wire).pull(name)
            first, second = faulty.asked(layer)
            assert "range" not in first.headers
            assert second.headers["range"] == "bytes=600000-"
            sweep.namespace(wire)

            faulty.faults[:] = [Fault(layer, stall_after=0)]
            said = f"GET {name.partition('/')[0]}", f"{layer}: cut: nothing came for 1 s"
            with wire.refused(grpc.StatusCode.UNAVAILABLE, *said):
                Mover(wire).pull(name, timeout=60)
            assert not wire.images.List(images_pb2.ListImagesRequest()).images
            faulty.faults.clear()
            Mover(wire).pull(name)
        finally:
            sweep.namespace(wire)
            wire.close()


def _writing(wire: Wire) -> bool:
    """Whether the transfer is still at it: its lease then says so for a day."""
    leases = wire.leases.List(leases_pb2.ListRequest()).leases
    soon = datetime.now(UTC) + timedelta(hours=2)
    return any(datetime.fromisoformat(lease.labels[_EXPIRE]) > soon for lease in leases)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
