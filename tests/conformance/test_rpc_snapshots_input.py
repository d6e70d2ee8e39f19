"""The snapshots service on requests that are wrong, odd, or made under a lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb

from .test_rpc_snapshots import ROOT, Snapshots
from .test_rpc_snapshots import snap as snap
from .wire import Wire

Code = grpc.StatusCode
REF = "containerd.io/snapshot.ref"
LARGE = {"k" * 100: "v" * 4000}
CALLS: dict[str, Callable[[Snapshots], Any]] = {
    "Prepare": lambda snap: snap.prepare("k"),
    "View": lambda snap: snap.view("k"),
    "Mounts": lambda snap: snap.mounts("k"),
    "Commit": lambda snap: snap.commit("n", "k"),
    "Remove": lambda snap: snap.remove("k"),
    "Stat": lambda snap: snap.stat("k"),
    "Update": lambda snap: update(snap, pb.Info(name="k")),
    "List": lambda snap: snap.list(),
    "Usage": lambda snap: snap.usage("k"),
    "Cleanup": lambda snap: snap.stub.Cleanup(pb.CleanupRequest(snapshotter=snap.name)),
}


def update(snap: Snapshots, info: pb.Info, *paths: str) -> pb.Info:
    request = pb.UpdateSnapshotRequest(
        snapshotter=snap.name, info=info, update_mask=FieldMask(paths=paths)
    )
    return snap.stub.Update(request).info


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_call_names_its_snapshotter(wire: Wire, call: Callable[[Snapshots], Any]) -> None:
    for name, says in (("nosuch", "nosuch"), ("", "snapshotter")):
        with wire.refused(Code.INVALID_ARGUMENT, says):
            call(Snapshots(wire, name))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_call_has_a_namespace(wire: Wire, call: Callable[[Snapshots], Any]) -> None:
    nobody = wire.scoped("")
    reference = Code.UNKNOWN if call is CALLS["List"] else None
    try:
        if wire.ours or call is not CALLS["Cleanup"]:  # containerd's has no Cleanup at all
            with nobody.refused(Code.FAILED_PRECONDITION, "namespace", reference=reference):
                call(Snapshots(nobody, "overlayfs"))
    finally:
        nobody.close()


def test_cleanup(snap: Snapshots) -> None:
    snap.prepare("k")
    request = pb.CleanupRequest(snapshotter=snap.name)
    if snap.wire.ours:
        snap.stub.Cleanup(request)
    else:
        with snap.wire.refused(Code.UNIMPLEMENTED):
            snap.stub.Cleanup(request)
    assert snap.mounts("k")


def test_labels_have_a_largest_size(snap: Snapshots) -> None:
    refused = snap.wire.refused
    with refused(Code.INVALID_ARGUMENT, "label"):
        snap.prepare("k", **LARGE)
    assert snap.list() == []
    snap.prepare("k")
    with refused(Code.INVALID_ARGUMENT, "label"):
        snap.commit("n", "k", **LARGE)
    for paths in ((), ("labels",), tuple(f"labels.{key}" for key in LARGE)):
        with refused(Code.INVALID_ARGUMENT, "label"):
            update(snap, pb.Info(name="k", labels=LARGE), *paths)
    assert dict(snap.stat("k").labels) == ROOT
    fits = {"k" * 96: "v" * 4000}
    assert dict(update(snap, pb.Info(name="k", labels={**ROOT, **fits})).labels) == {**ROOT, **fits}


def test_an_unknown_field_changes_nothing(snap: Snapshots) -> None:
    snap.prepare("k", a="1")
    before = snap.stat("k")
    for path in ("parent", "kind", "name", "nonsense", "label", "labelsx"):
        info = pb.Info(name="k", parent="p", kind=pb.VIEW, labels={"a": "2"})
        with snap.wire.refused(Code.INVALID_ARGUMENT, path):
            update(snap, info, "labels.a", path)
    assert snap.stat("k") == before


def test_an_update_needs_a_snapshot(snap: Snapshots) -> None:
    with snap.wire.refused(Code.INVALID_ARGUMENT, "name"):
        update(snap, pb.Info(labels={"a": "1"}))
    with snap.wire.refused(Code.NOT_FOUND, "absent"):
        update(snap, pb.Info(name="absent"))
    if snap.wire.ours:  # containerd's process ends with a panic
        with snap.wire.refused(Code.INVALID_ARGUMENT, "info"):
            snap.stub.Update(pb.UpdateSnapshotRequest(snapshotter=snap.name))


def test_an_empty_value_removes_a_label(snap: Snapshots) -> None:
    snap.prepare("k", a="1", b="2", empty="")
    assert dict(snap.stat("k").labels) == {**ROOT, "a": "1", "b": "2"}
    assert dict(update(snap, pb.Info(name="k"), "labels.a").labels) == {**ROOT, "b": "2"}
    labels = {**ROOT, "b": ""}
    assert dict(update(snap, pb.Info(name="k", labels=labels), "labels").labels) == ROOT


def test_keys_have_a_largest_size(snap: Snapshots) -> None:
    longest = "k" * 32000
    snap.prepare(longest)
    assert snap.list() == [longest]
    snap.remove(longest)
    if snap.wire.ours:  # containerd takes what fits into a request
        with snap.wire.refused(Code.INVALID_ARGUMENT, "key"):
            snap.prepare("k" * 32769)
        snap.prepare("k")
        with snap.wire.refused(Code.INVALID_ARGUMENT, "name"):
            snap.commit("n" * 32769, "k")
        assert snap.list() == ["k"]


def test_nothing_stands_on_what_is_not_committed(snap: Snapshots) -> None:
    refused = snap.wire.refused
    snap.prepare("active")
    snap.view("view")
    for parent in ("active", "view"):
        with refused(Code.INVALID_ARGUMENT, parent):
            snap.prepare("k", parent)
        with refused(Code.INVALID_ARGUMENT, parent):
            snap.view("k", parent)
    for make in (snap.prepare, snap.view):
        with refused(Code.NOT_FOUND, "absent"):
            make("k", "absent")
    assert snap.list() == ["active", "view"]


def test_a_target_that_is_there_already(snap: Snapshots) -> None:
    snap.prepare("k", **{REF: "n"})
    snap.commit("n", "k", **{REF: "n"})
    for parent in ("", "n"):
        with snap.wire.refused(Code.ALREADY_EXISTS, "n"):
            snap.prepare("k", parent, **{REF: "n"})
    assert snap.list() == ["n"]
    snap.prepare("k", "n", **{REF: "other"})
    assert dict(snap.stat("k").labels) == {**ROOT, REF: "other"}


def test_leases_hold_what_is_made_and_what_is_found(snap: Snapshots) -> None:
    wire = snap.wire
    wire.leases.Create(leases_pb2.CreateRequest(id="held"))
    leased = Snapshots(wire.scoped(lease="held"), snap.name)

    def held() -> set[tuple[str, str]]:
        answer = wire.leases.ListResources(leases_pb2.ListResourcesRequest(id="held"))
        return {(resource.type, resource.id) for resource in answer.resources}

    kind = f"snapshots/{snap.name}"
    try:
        leased.prepare("k")
        assert held() == {(kind, "k")}
        leased.commit("n", "k")
        assert held() == {(kind, "n")}
        snap.prepare("mine")
        with wire.refused(Code.ALREADY_EXISTS, "mine"):
            leased.prepare("mine")
        leased.view("v", "n")
        found = {(kind, "mine")} if wire.ours else set()  # as containerd 2 does
        assert held() == {(kind, "n"), (kind, "v"), *found}
        leased.remove("v")
        assert held() == {(kind, "n"), *found}
    finally:
        leased.wire.close()
    nobody = Snapshots(wire.scoped(lease="nosuch"), snap.name)
    try:
        with wire.refused(Code.NOT_FOUND, "nosuch"):
            nobody.prepare("other")
    finally:
        nobody.wire.close()
    assert snap.list() == ["mine", "n"]
