"""Pulls by the Transfer service, from Debian's registry into snapshots that run.

Debian's containerd (1.6) has no Transfer service, so these are of ours alone; ``ctr``, which knows
how an image must look, is the second opinion.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.types import types_pb2
from tests.clients.transferring import Mover, events
from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon
from tests.conformance.ocitar import (
    Image,
    Member,
    build,
    busybox_layer,
    hardlink,
    third_layer,
)
from tests.conformance.wire import Wire
from tests.registries.faults import Fault, Proxy, threaded
from tests.registries.server import PASSWORD, USER, Server, fill, needed, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

Lasting = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def pulled() -> Image:
    """Not the image of the other tests: what some namespace has need not be downloaded."""
    noise = random.Random(3).randbytes(900_000)  # noqa: S311 - the same each time
    layers = [[*busybox_layer(), Member("etc/pulled", b"1")], [Member("noise", noise)]]
    return build([*layers, [*third_layer(), Member("data/pulled", b"1")]])


@pytest.fixture(scope="module")
def registry(
    lasting: Lasting, pulled: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A registry that holds the image as ``busybox:1``."""
    folder = tmp_path_factory.mktemp("registry")
    with lasting(), server(folder) as found:
        fill(found, pulled.write(folder / "image.tar", "x:1"), "busybox:1")
        yield found


@pytest.fixture
def faulty(registry: Server) -> Iterator[Proxy]:
    """A proxy before it."""
    with threaded(registry.address) as found:
        yield found


@pytest.fixture
def mover(wire: Wire) -> Mover:
    return Mover(wire)


def _nothing_left(wire: Wire) -> None:
    """No name, no half of a blob or snapshot; a lease only if it ends in an hour, and a whole
    snapshot (of a layer that came before the fault) only if such a lease holds it."""
    assert not wire.images.List(images_pb2.ListImagesRequest()).images
    held = set()
    for lease in wire.leases.List(leases_pb2.ListRequest()).leases:
        until = datetime.fromisoformat(lease.labels["containerd.io/gc.expire"])
        assert until - datetime.now(UTC) <= timedelta(hours=1)
        request = leases_pb2.ListResourcesRequest(id=lease.id)
        held |= {each.id for each in wire.leases.ListResources(request).resources}
    for name in ("overlayfs", "native"):
        every = snapshots_pb2.ListSnapshotsRequest(snapshotter=name)
        for info in (info for page in wire.snapshots.List(every) for info in page.info):
            assert info.kind == snapshots_pb2.COMMITTED
            assert info.name in held
    assert not wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_what_is_pulled_runs(
    mover: Mover,
    ctr: Ctr,
    wire: Wire,
    registry: Server,
    pulled: Image,
    unique: str,
    snapshotter: str,
) -> None:
    name = f"{registry.address}/busybox:1"
    mover.pull(name, snapshotter=snapshotter, labels={"a": "b"})
    found = wire.images.Get(images_pb2.GetImageRequest(name=name)).image
    assert (found.target.digest, dict(found.labels)) == (pulled.manifest, {"a": "b"})
    (row,) = ctr("i", "check", "--snapshotter", snapshotter).rows()
    assert (row[3], row[-1]) == ("complete", "true")
    listed = {row[0] for row in ctr("snapshots", "--snapshotter", snapshotter, "ls").rows()}
    assert listed == set(pulled.chain_ids)
    run = ctr("run", "--rm", "--snapshotter", snapshotter, name, unique, "echo", "pulled")
    assert run.out == "pulled\n"
    assert not wire.leases.List(leases_pb2.ListRequest()).leases


def test_a_collection_takes_nothing_of_it(
    mover: Mover, ctr: Ctr, wire: Wire, registry: Server, pulled: Image
) -> None:
    name = f"{registry.address}/busybox:1"
    mover.pull(name)
    lease = wire.leases.Create(leases_pb2.CreateRequest()).lease
    wire.leases.Delete(leases_pb2.DeleteRequest(id=lease.id, sync=True))
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")
    blobs = {
        info.digest: dict(info.labels)
        for page in wire.content.List(content_pb2.ListContentRequest())
        for info in page.info
    }
    assert set(blobs) == {pulled.manifest, pulled.config, *pulled.layers}
    source = f"containerd.io/distribution.source.{registry.address}"
    assert all(labels[source] == "busybox" for labels in blobs.values())
    for layer, diff_id in zip(pulled.layers, pulled.diff_ids, strict=True):
        assert blobs[layer]["containerd.io/uncompressed"] == diff_id
    assert blobs[pulled.config]["containerd.io/gc.ref.snapshot.overlayfs"] == pulled.chain_ids[-1]


def test_what_is_there_is_the_lease_s(
    mover: Mover, wire: Wire, registry: Server, pulled: Image
) -> None:
    """A manifest that nobody refers to may be collected at any moment of a pull but for that."""
    name = f"{registry.address}/busybox:1"
    keeper = wire.leases.Create(leases_pb2.CreateRequest(id="keeper")).lease.id
    mover.pull(name)
    under = wire.scoped(lease=keeper)
    try:
        Mover(under).pull(name)
        resources = wire.leases.ListResources(leases_pb2.ListResourcesRequest(id=keeper)).resources
        held = {(one.type, one.id) for one in resources}
        assert ("content", pulled.manifest) in held
        assert ("snapshots/overlayfs", pulled.chain_ids[-1]) in held
        wire.images.Delete(images_pb2.DeleteImageRequest(name=name, sync=True))
        assert wire.content.Info(content_pb2.InfoRequest(digest=pulled.manifest)).info.digest
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
        listed = {info.name for page in wire.snapshots.List(request) for info in page.info}
        assert listed == set(pulled.chain_ids)
    finally:
        under.close()


def test_progress_is_a_tree(mover: Mover, registry: Server, pulled: Image) -> None:
    name = f"{registry.address}/busybox:1"
    mover.pull(name)
    parents = {one.name: list(one.parents) for one in mover.progress if one.parents}
    manifest = f"manifest-{pulled.manifest}"
    assert parents[manifest] == [name]
    for child in (f"config-{pulled.config}", *(f"layer-{layer}" for layer in pulled.layers)):
        assert parents[child] == [manifest]
    for layer in pulled.layers:
        told = list(events(mover.progress, f"layer-{layer}"))
        assert told[0] == "waiting"
        assert told[-2:] in (["complete", "extracted"], ["extracting", "extracted"])
    words = [one.event for one in mover.progress]
    assert words[0] == f"Resolving from OCI Registry ({name})"
    assert words[-2:] == ["saved", f"Completed pull from OCI Registry ({name})"]
    mover.pull(name)
    assert set(events(mover.progress, "manifest-")) == {"waiting", "already exists"}


def test_what_is_there_is_not_fetched(
    mover: Mover, wire: Wire, faulty: Proxy, pulled: Image
) -> None:
    name = f"{faulty.address}/busybox:1"
    mover.pull(name)
    assert len(faulty.asked("/blobs/")) == 1 + len(pulled.layers)
    mover.pull(name)
    assert len(faulty.asked("/blobs/")) == 1 + len(pulled.layers)
    # A snapshot is enough: its layer need not be there.
    for layer in pulled.layers:
        wire.content.Delete(content_pb2.DeleteContentRequest(digest=layer))
    mover.pull(name)
    assert len(faulty.asked("/blobs/")) == 1 + len(pulled.layers)


def test_two_namespaces_share_a_download(
    daemon: Daemon, wire: Wire, faulty: Proxy, pulled: Image, unique: str
) -> None:
    name = f"{faulty.address}/busybox:1"
    faulty.faults.append(Fault("/blobs/", delay=0.3))
    other = wire.scoped(unique)
    try:
        threads = [
            threading.Thread(target=Mover(one).pull, args=(name,)) for one in (wire, other, wire)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(faulty.asked("/blobs/")) == 1 + len(pulled.layers)
        for one in (wire, other):
            found = one.images.Get(images_pb2.GetImageRequest(name=name)).image
            assert found.target.digest == pulled.manifest
    finally:
        sweep.namespace(other)
        other.close()


def test_credentials_are_asked_of_the_client(
    mover: Mover, wire: Wire, pulled: Image, tmp_path: Path
) -> None:
    with server(tmp_path, password=True) as locked:
        fill(locked, pulled.write(tmp_path / "image.tar", "x:1"), "busybox:1", password=True)
        name = f"{locked.address}/busybox:1"
        id, stream, asked = mover.answering(USER, PASSWORD)
        try:
            mover.pull(name, resolver={"auth_stream": id})
        finally:
            stream.close()
        (question,) = asked
        assert (question.host, question.reference) == (locked.address, name)
        assert question.wwwauthenticate[0].startswith("Basic ")
        with wire.refused(grpc.StatusCode.UNAUTHENTICATED, "wants a user and a password"):
            mover.pull(name, name="other")


def test_a_connection_that_is_cut(mover: Mover, ctr: Ctr, faulty: Proxy, pulled: Image) -> None:
    largest = max(pulled.layers, key=lambda layer: len(pulled.blobs[layer]))
    size = len(pulled.blobs[largest])
    faulty.faults.append(Fault(largest, cut_after=size // 8, times=3))
    name = f"{faulty.address}/busybox:1"
    mover.pull(name)
    ranges = [seen.headers.get("range") for seen in faulty.asked(largest)]
    assert len(ranges) == 4
    assert ranges[0] is None
    assert ranges[1] == f"bytes={size // 8}-"
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")


def test_a_server_without_ranges(mover: Mover, ctr: Ctr, faulty: Proxy, pulled: Image) -> None:
    largest = max(pulled.layers, key=lambda layer: len(pulled.blobs[layer]))
    faulty.faults.append(Fault(largest, cut_after=100_000, times=1))
    faulty.faults.append(Fault(largest, no_ranges=True))
    mover.pull(f"{faulty.address}/busybox:1")
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")


def test_a_cut_that_does_not_end_keeps_what_came(
    mover: Mover, wire: Wire, faulty: Proxy, pulled: Image
) -> None:
    largest = max(pulled.layers, key=lambda layer: len(pulled.blobs[layer]))
    fault = Fault(largest, cut_after=0)
    faulty.faults += [Fault(largest, cut_after=100_000, times=1), fault]
    name = f"{faulty.address}/busybox:1"
    with wire.refused(grpc.StatusCode.UNAVAILABLE, largest):
        mover.pull(name)
    assert not wire.images.List(images_pb2.ListImagesRequest()).images
    faulty.faults.remove(fault)
    faulty.seen.clear()
    mover.pull(name)
    (seen,) = faulty.asked(largest)
    assert seen.headers["range"] == "bytes=100000-"


def test_other_bytes_than_announced(mover: Mover, wire: Wire, faulty: Proxy, pulled: Image) -> None:
    fault = Fault(pulled.layers[1], corrupt=100)
    faulty.faults.append(fault)
    name = f"{faulty.address}/busybox:1"
    with wire.refused(grpc.StatusCode.DATA_LOSS, pulled.layers[1]):
        mover.pull(name)
    _nothing_left(wire)
    faulty.faults.remove(fault)
    mover.pull(name)


def test_a_platform_that_there_is_not(mover: Mover, wire: Wire, registry: Server) -> None:
    name = f"{registry.address}/busybox:1"
    with wire.refused(grpc.StatusCode.NOT_FOUND, "linux/s390x"):
        mover.pull(name, platforms=[types_pb2.Platform(os="linux", architecture="s390x")])
    _nothing_left(wire)


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("no host", grpc.StatusCode.INVALID_ARGUMENT, "must begin with a host"),
        ("{}/busybox", grpc.StatusCode.NOT_FOUND, "neither a tag nor a digest"),
        ("{}/busybox:2", grpc.StatusCode.NOT_FOUND, "busybox:2: not found"),
        ("{}/other:1", grpc.StatusCode.NOT_FOUND, "other:1: not found"),
        ("127.0.0.1:9/a:1", grpc.StatusCode.UNAVAILABLE, "127.0.0.1:9"),
    ],
)
def test_references_that_lead_nowhere(
    mover: Mover,
    wire: Wire,
    registry: Server,
    reference: str,
    code: grpc.StatusCode,
    words: str,
) -> None:
    with wire.refused(code, words):
        mover.pull(reference.format(registry.address), name="n")
    _nothing_left(wire)


def test_a_snapshotter_that_there_is_not(mover: Mover, wire: Wire, registry: Server) -> None:
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "unpack: snapshotter 'none'"):
        mover.pull(f"{registry.address}/busybox:1", snapshotter="none")
    _nothing_left(wire)


def test_a_client_that_goes_away(mover: Mover, wire: Wire, faulty: Proxy, pulled: Image) -> None:
    """What is half-made goes with the call; bytes that came are kept for the next time."""
    largest = max(pulled.layers, key=lambda layer: len(pulled.blobs[layer]))
    faulty.faults.append(Fault(largest, stall_after=100_000))
    name = f"{faulty.address}/busybox:1"
    with wire.refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        mover.pull(name, timeout=3)
    faulty.faults.clear()
    mover.pull(name)


def test_a_daemon_that_is_killed_in_the_middle(
    own_daemon: Daemon, faulty: Proxy, pulled: Image, unique: str
) -> None:
    """The next one goes on from the bytes that came, and nothing half-made is seen."""
    largest = max(pulled.layers, key=lambda layer: len(pulled.blobs[layer]))
    faulty.faults.append(Fault(largest, stall_after=600_000))
    name = f"{faulty.address}/busybox:1"
    wire = Wire(own_daemon.address, unique, ours=own_daemon.ours)
    try:
        thread = threading.Thread(target=_fails, args=(Mover(wire), name))
        thread.start()
        _until(
            lambda: any(
                one.offset >= 500_000 for one in _statuses(wire) if one.ref.endswith(largest)
            )
        )
        own_daemon.kill()
        thread.join()
        own_daemon.start()
    finally:
        wire.close()
    wire = Wire(own_daemon.address, unique, ours=own_daemon.ours)
    try:
        assert not wire.images.List(images_pb2.ListImagesRequest()).images
        faulty.faults.clear()
        faulty.seen.clear()
        Mover(wire).pull(name)
        (seen,) = faulty.asked(largest)
        assert int(seen.headers["range"].removeprefix("bytes=").removesuffix("-")) >= 500_000
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
        listed = {info.name for page in wire.snapshots.List(request) for info in page.info}
        assert listed == set(pulled.chain_ids)
        sweep.namespace(wire)
    finally:
        wire.close()


def _fails(mover: Mover, name: str) -> None:
    with pytest.raises(grpc.RpcError):
        mover.pull(name)


def _statuses(wire: Wire) -> Sequence[content_pb2.Status]:
    return wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_layer_that_needs_the_one_below(
    mover: Mover, ctr: Ctr, registry: Server, tmp_path: Path, unique: str
) -> None:
    """Some builders write hard links to files of the layers below."""
    linked = build([busybox_layer(), [hardlink("root/echo", "bin/busybox", mode=0o755)]])
    archive = linked.write(tmp_path / "image.tar", "x:1")
    fill(registry, archive, f"{unique}:1")
    name = f"{registry.address}/{unique}:1"
    mover.pull(name)
    run = ctr("run", "--rm", name, unique, "/root/echo", "linked")
    assert run.out == "linked\n"
