"""Snapshots and diff over gRPC, on both snapshotters."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.diff.v1 import diff_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from protos.containerd.types import types_pb2

from . import ocitar
from .content.session import read, write
from .wire import Wire

Code = grpc.StatusCode
ROOT = {"containerd.io/gc.root": "test"}


class Snapshots:
    """One snapshotter, with short verbs."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire, self.stub, self.name = wire, wire.snapshots, name

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[types_pb2.Mount]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels={**ROOT, **labels}
        )
        return list(self.stub.Prepare(request).mounts)

    def view(self, key: str, parent: str = "") -> list[types_pb2.Mount]:
        request = pb.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=ROOT)
        return list(self.stub.View(request).mounts)

    def commit(self, name: str, key: str, **labels: str) -> None:
        self.stub.Commit(
            pb.CommitSnapshotRequest(
                snapshotter=self.name, name=name, key=key, labels={**ROOT, **labels}
            )
        )

    def mounts(self, key: str) -> list[types_pb2.Mount]:
        return list(self.stub.Mounts(pb.MountsRequest(snapshotter=self.name, key=key)).mounts)

    def stat(self, key: str) -> pb.Info:
        return self.stub.Stat(pb.StatSnapshotRequest(snapshotter=self.name, key=key)).info

    def remove(self, key: str) -> None:
        self.stub.Remove(pb.RemoveSnapshotRequest(snapshotter=self.name, key=key))

    def usage(self, key: str) -> pb.UsageResponse:
        return self.stub.Usage(pb.UsageRequest(snapshotter=self.name, key=key))

    def list(self, *filters: str) -> list[str]:
        request = pb.ListSnapshotsRequest(snapshotter=self.name, filters=filters)
        return sorted(info.name for batch in self.stub.List(request) for info in batch.info)


@pytest.fixture(params=["overlayfs", "native"])
def snap(request: pytest.FixtureRequest, wire: Wire) -> Snapshots:
    """Both snapshotters that every daemon has."""
    return Snapshots(wire, request.param)


@contextmanager
def mounted(mounts: list[types_pb2.Mount], point: Path) -> Iterator[Path]:
    """The mounts of a snapshot, mounted."""
    (mount,) = mounts
    point.mkdir(exist_ok=True)
    flags = ["rbind" if option == "rbind" else option for option in mount.options]
    command = ["mount", "-t", mount.type, "-o", ",".join(flags), mount.source, str(point)]
    subprocess.run(command, check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_life(snap: Snapshots) -> None:
    before = time.time()
    mounts = snap.prepare("k", a="b")
    assert mounts == snap.mounts("k")
    (mount,) = mounts
    assert mount.type == "bind"
    assert "rw" in mount.options
    info = snap.stat("k")
    assert (info.name, info.parent, info.kind) == ("k", "", pb.ACTIVE)
    assert dict(info.labels) == {**ROOT, "a": "b"}
    assert before - 1 < info.created_at.seconds < time.time() + 1
    snap.commit("n", "k", c="d")
    info = snap.stat("n")
    assert (info.name, info.kind) == ("n", pb.COMMITTED)
    assert info.labels["c"] == "d"
    mounts = snap.prepare("k", "n")
    assert snap.stat("k").parent == "n"
    (mount,) = snap.view("v", "n")
    assert "ro" in mount.options or not any(o.startswith("upperdir") for o in mount.options)
    assert snap.stat("v").kind == pb.VIEW
    assert snap.list() == ["k", "n", "v"]
    for key in ("k", "v", "n"):
        snap.remove(key)
    assert snap.list() == []


def test_overlay_mounts_name_their_layers(wire: Wire) -> None:
    snap = Snapshots(wire, "overlayfs")
    for number in range(3):
        snap.prepare("k", f"n{number - 1}" if number else "")
        snap.commit(f"n{number}", "k")
    (mount,) = snap.prepare("k", "n2")
    assert mount.type == "overlay"
    options = dict(option.partition("=")[::2] for option in mount.options)
    assert {"upperdir", "workdir", "lowerdir"} <= set(options)
    layers = options["lowerdir"].split(":")
    assert len(layers) == 3
    assert all(os.path.isdir(layer) for layer in [*layers, options["upperdir"]])


def test_codes(snap: Snapshots) -> None:
    refused = snap.wire.refused
    snap.prepare("k")
    with refused(Code.ALREADY_EXISTS, "k"):
        snap.prepare("k")
    with refused(Code.ALREADY_EXISTS, "k"):
        snap.view("k")
    for call in (snap.stat, snap.mounts, snap.remove, snap.usage):
        with refused(Code.NOT_FOUND, "absent"):
            call("absent")
    with refused(Code.NOT_FOUND, "absent"):
        snap.prepare("k2", "absent")
    with refused(Code.NOT_FOUND, "absent"):
        snap.commit("n", "absent")
    with refused(Code.INVALID_ARGUMENT, "k"):
        snap.prepare("k2", "k")
    snap.commit("n", "k")
    with refused(Code.FAILED_PRECONDITION, "n"):
        snap.mounts("n")
    with refused(Code.ALREADY_EXISTS, "n"):
        snap.prepare("n")
    snap.prepare("k")
    with refused(Code.ALREADY_EXISTS, "n"):
        snap.commit("n", "k")
    snap.view("v", "n")
    reference = Code.UNKNOWN if snap.name == "native" else None
    with refused(Code.FAILED_PRECONDITION, "v", reference=reference):
        snap.commit("n3", "v")
    with refused(Code.FAILED_PRECONDITION, "n"):
        snap.remove("n")
    assert snap.list() == ["k", "n", "v"]


def test_unknown_snapshotter_is_refused(wire: Wire) -> None:
    snap = Snapshots(wire, "nosuch")
    with wire.refused(Code.INVALID_ARGUMENT, "nosuch"):
        snap.prepare("k")
    snap.name = ""
    with wire.refused(Code.INVALID_ARGUMENT, "snapshotter"):
        snap.prepare("k")


def test_empty_key_is_refused(snap: Snapshots) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        snap.prepare("")
    error: Any = caught.value
    if snap.wire.ours:
        assert error.code() is Code.INVALID_ARGUMENT
        assert "key" in error.details()


def test_update_by_mask(snap: Snapshots) -> None:
    snap.prepare("k", a="1", b="2")
    info = pb.Info(name="k", labels={"a": "9"})
    request = pb.UpdateSnapshotRequest(
        snapshotter=snap.name, info=info, update_mask=FieldMask(paths=["labels.a"])
    )
    updated = snap.stub.Update(request).info
    assert dict(updated.labels) == {**ROOT, "a": "9", "b": "2"}
    info.labels.update(ROOT)
    request = pb.UpdateSnapshotRequest(
        snapshotter=snap.name, info=info, update_mask=FieldMask(paths=["labels"])
    )
    assert dict(snap.stub.Update(request).info.labels) == {**ROOT, "a": "9"}
    request.update_mask.paths[:] = ["parent"]
    with snap.wire.refused(Code.INVALID_ARGUMENT, "parent"):
        snap.stub.Update(request)
    request.info.name = "absent"
    request.update_mask.paths[:] = ["labels.a"]
    with snap.wire.refused(Code.NOT_FOUND, "absent"):
        snap.stub.Update(request)


def test_filters(snap: Snapshots) -> None:
    snap.prepare("one", color="red")
    snap.prepare("two", color="blue")
    snap.commit("base", "two")
    snap.prepare("three", "base")
    assert snap.list("name==one") == ["one"]
    assert snap.list("kind==committed") == ["base"]
    assert snap.list("parent==base") == ["three"]
    assert snap.list("labels.color==red", "kind==committed") == ["base", "one"]
    assert snap.list("kind==active,labels.color") == ["one"]
    with snap.wire.refused(Code.INVALID_ARGUMENT, "filter", reference=Code.UNKNOWN):
        snap.list("kind=")


def test_names_are_free_text(snap: Snapshots) -> None:
    name = "some name/with:everything é"
    snap.prepare(name)
    assert snap.stat(name).name == name
    snap.remove(name)


def test_namespaces_do_not_meet(snap: Snapshots) -> None:
    from . import sweep

    other = snap.wire.scoped(f"{snap.wire.namespace}-b")
    there = Snapshots(other, snap.name)
    snap.prepare("k")
    there.prepare("k")
    snap.remove("k")
    assert there.stat("k").name == "k"
    assert snap.list() == []
    sweep.namespace(other)
    other.close()


def test_children_see_what_parents_have(snap: Snapshots, tmp_path: Path) -> None:
    with mounted(snap.prepare("k"), tmp_path / "m") as root:
        (root / "file").write_text("first")
        (root / "gone").write_text("x")
    snap.commit("n", "k")
    with mounted(snap.prepare("k", "n"), tmp_path / "m") as root:
        assert (root / "file").read_text() == "first"
        (root / "file").write_text("second")
        (root / "gone").unlink()
    snap.commit("n2", "k")
    with mounted(snap.view("v", "n2"), tmp_path / "m") as root:
        assert (root / "file").read_text() == "second"
        assert sorted(os.listdir(root)) == ["file"]
    with mounted(snap.view("v1", "n"), tmp_path / "m") as root:
        assert (root / "file").read_text() == "first"


# --- diff -----------------------------------------------------------------------------------------


def apply(wire: Wire, blob: bytes, mounts: list[types_pb2.Mount], media_type: str) -> str:
    """Applies a layer; answers its diff-id."""
    digest = write(wire, blob)
    layer = types_pb2.Descriptor(media_type=media_type, digest=digest, size=len(blob))
    applied = wire.diff.Apply(diff_pb2.ApplyRequest(diff=layer, mounts=mounts)).applied
    assert applied.media_type == ocitar.LAYER
    return applied.digest


@pytest.mark.parametrize("kind", ["none", "gzip", "zstd"])
def test_apply(snap: Snapshots, kind: str, tmp_path: Path) -> None:
    plain = ocitar.tar(ocitar.second_layer())
    media_type, blob = ocitar.compress(plain, kind)
    mounts = snap.prepare("k")
    assert apply(snap.wire, blob, mounts, media_type) == ocitar.sha256(plain)
    with mounted(mounts, tmp_path / "m") as root:
        assert (root / "data/gone").read_text() == "gone\n"
        assert (root / "data/kept").stat().st_uid == 1000


def test_apply_of_docker_media_types(snap: Snapshots) -> None:
    plain = ocitar.tar([ocitar.Member("file", b"x")])
    _, blob = ocitar.compress(plain, "gzip")
    media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert apply(snap.wire, blob, snap.prepare("k"), media_type) == ocitar.sha256(plain)


def test_apply_codes(snap: Snapshots) -> None:
    mounts = snap.prepare("k")
    layer = types_pb2.Descriptor(media_type=ocitar.LAYER, digest=ocitar.sha256(b"absent"), size=1)
    with snap.wire.refused(Code.NOT_FOUND, ocitar.sha256(b"absent")):
        snap.wire.diff.Apply(diff_pb2.ApplyRequest(diff=layer, mounts=mounts))
    layer.digest = write(snap.wire, b"some text")
    layer.media_type = "text/plain"
    with pytest.raises(grpc.RpcError) as caught:
        snap.wire.diff.Apply(diff_pb2.ApplyRequest(diff=layer, mounts=mounts))
    assert caught.value.code() is not Code.INTERNAL
    assert "text/plain" in (caught.value.details() or "")


def members(wire: Wire, descriptor: types_pb2.Descriptor) -> dict[str, tarfile.TarInfo]:
    """The members of a layer blob by name."""
    blob = read(wire, descriptor.digest)
    assert len(blob) == descriptor.size
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:*") as archive:
        return {member.name.rstrip("/"): member for member in archive}


def test_diff_of_changes(snap: Snapshots, tmp_path: Path) -> None:
    with mounted(snap.prepare("k"), tmp_path / "m") as root:
        (root / "same").write_text("same")
        (root / "folder").mkdir()
        (root / "folder/gone").write_text("x")
        (root / "link").symlink_to("same")
    snap.commit("n", "k")
    upper = snap.prepare("k", "n")
    with mounted(upper, tmp_path / "m") as root:
        (root / "folder/gone").unlink()
        (root / "new").write_bytes(b"n" * 5000)
        os.chmod(root / "new", 0o4711)
        (root / "link").unlink()
        (root / "link").symlink_to("new")
        os.link(root / "new", root / "hard")
    lower = snap.view("v", "n")
    request = diff_pb2.DiffRequest(
        left=lower, right=upper, ref="diff-ref", labels={**ROOT, "a": "b"}
    )
    descriptor = snap.wire.diff.Diff(request).diff
    assert descriptor.media_type == ocitar.LAYER + "+gzip"
    found = members(snap.wire, descriptor)
    assert set(found) == {"folder", "folder/.wh.gone", "new", "link", "hard"}
    assert found["new"].mode == 0o4711 or found["hard"].mode == 0o4711
    assert found["link"].linkname == "new"
    assert found["hard"].islnk() != found["new"].islnk()
    stored = snap.wire.content.Info(content_pb2.InfoRequest(digest=descriptor.digest)).info
    assert stored.labels["a"] == "b"
    assert stored.labels["containerd.io/uncompressed"].startswith("sha256:")


def test_diff_can_be_applied_again(snap: Snapshots, tmp_path: Path) -> None:
    with mounted(snap.prepare("k"), tmp_path / "m") as root:
        (root / "file").write_text("one")
        (root / "gone").write_text("x")
    snap.commit("n", "k")
    upper = snap.prepare("k", "n")
    with mounted(upper, tmp_path / "m") as root:
        (root / "file").write_text("two")
        (root / "gone").unlink()
    request = diff_pb2.DiffRequest(
        left=snap.view("v", "n"), right=upper, media_type=ocitar.LAYER, labels=ROOT
    )
    descriptor = snap.wire.diff.Diff(request).diff
    assert descriptor.media_type == ocitar.LAYER
    again = snap.prepare("again", "n")
    applied = snap.wire.diff.Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=again)).applied
    assert applied.digest == descriptor.digest
    with mounted(again, tmp_path / "m") as root:
        assert sorted(os.listdir(root)) == ["file"]
        assert (root / "file").read_text() == "two"
