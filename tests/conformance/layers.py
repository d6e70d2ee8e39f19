"""Short verbs for tests of Diff: snapshots to apply layers to, and what became of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.protobuf.any_pb2 import Any

from protos.containerd.services.diff.v1 import diff_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.types import types_pb2

from . import ocitar
from .content.session import read, write
from .wire import Wire

ROOT = {"containerd.io/gc.root": "test"}
Mounts = Sequence[types_pb2.Mount]


class Tree:
    """Snapshots of one snapshotter, made and filled by layers."""

    def __init__(self, wire: Wire, snapshotter: str, folder: Path) -> None:
        self.wire, self._name, self._folder = wire, snapshotter, folder

    def prepare(self, key: str, parent: str = "") -> Mounts:
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=ROOT
        )
        return self.wire.snapshots.Prepare(request).mounts

    def view(self, key: str, parent: str = "") -> Mounts:
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=ROOT
        )
        return self.wire.snapshots.View(request).mounts

    def commit(self, name: str, key: str) -> None:
        self.wire.snapshots.Commit(
            snapshots_pb2.CommitSnapshotRequest(
                snapshotter=self._name, name=name, key=key, labels=ROOT
            )
        )

    def apply(
        self, blob: bytes, mounts: Mounts, media_type: str = ocitar.LAYER, **payloads: Any
    ) -> types_pb2.Descriptor:
        """Writes the blob and applies it."""
        layer = types_pb2.Descriptor(media_type=media_type, digest=self.write(blob), size=len(blob))
        request = diff_pb2.ApplyRequest(diff=layer, mounts=mounts, payloads=payloads)
        return self.wire.diff.Apply(request).applied

    def write(self, blob: bytes) -> str:
        """Answers the digest of the blob, which may be there already."""
        try:
            return write(self.wire, blob)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return ocitar.sha256(blob)

    def layer(self, name: str, parent: str, *members: ocitar.Member) -> None:
        """Commits a snapshot that has the members above its parent."""
        self.apply(ocitar.tar(members), self.prepare(f"{name}-key", parent))
        self.commit(name, f"{name}-key")

    def diff(self, left: Mounts, right: Mounts, **more: object) -> types_pb2.Descriptor:
        """Computes a layer."""
        labels = {**ROOT, **more.pop("labels", {})}  # type: ignore[dict-item]
        request = diff_pb2.DiffRequest(left=left, right=right, labels=labels, **more)  # type: ignore[arg-type]
        return self.wire.diff.Diff(request).diff

    def blob(self, descriptor: types_pb2.Descriptor) -> bytes:
        return read(self.wire, descriptor.digest)

    def members(self, descriptor: types_pb2.Descriptor) -> dict[str, tarfile.TarInfo]:
        """What is in a layer, by name."""
        with tarfile.open(fileobj=io.BytesIO(self.blob(descriptor)), mode="r:*") as archive:
            return {member.name.rstrip("/"): member for member in archive}

    @contextmanager
    def mounted(self, mounts: Mounts) -> Iterator[Path]:
        """The mounts of a snapshot, mounted."""
        point = self._folder / "mnt"
        point.mkdir(exist_ok=True)
        (mount,) = mounts
        command = ["mount", "-t", mount.type, mount.source, str(point)]
        options = [option for option in mount.options if option != "rbind"]
        if mount.type == "bind":
            command = ["mount", "--bind", mount.source, str(point)]
        else:
            command += ["-o", ",".join(options)]
        subprocess.run(command, check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)
