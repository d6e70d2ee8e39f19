"""The layer between two snapshots, as ``sctl snapshots diff`` writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

import grpc

from protos.containerd.services.diff.v1.diff_pb2 import DiffRequest
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as wire
from protos.containerd.types.types_pb2 import Descriptor, Mount

from .connection import Connection


def layer_between(
    daemon: Connection,
    snapshotter: str,
    lower: str,
    upper: str,
    *,
    media_type: str,
    ref: str,
    labels: Mapping[str, str],
) -> Descriptor:
    """Computes the changes from ``lower`` to ``upper``; without an upper, from the parent of
    ``lower`` to ``lower``. Snapshots that cannot be mounted are seen through short-lived views."""
    with ExitStack() as undo:
        if not upper:
            request = wire.StatSnapshotRequest(snapshotter=snapshotter, key=lower)
            lower, upper = daemon.snapshots.Stat(request).info.parent, lower
        left = _mounts(daemon, snapshotter, lower, undo) if lower else _empty(
            daemon, snapshotter, undo
        )  # fmt: skip
        right = _mounts(daemon, snapshotter, upper, undo)
        return daemon.diff.Diff(
            DiffRequest(left=left, right=right, media_type=media_type, ref=ref, labels=labels)
        ).diff


def _mounts(daemon: Connection, snapshotter: str, key: str, undo: ExitStack) -> Sequence[Mount]:
    stat = wire.StatSnapshotRequest(snapshotter=snapshotter, key=key)
    if daemon.snapshots.Stat(stat).info.kind == wire.Kind.COMMITTED:
        return _view(daemon, snapshotter, key, undo)
    request = wire.MountsRequest(snapshotter=snapshotter, key=key)
    return daemon.snapshots.Mounts(request).mounts


def _empty(daemon: Connection, snapshotter: str, undo: ExitStack) -> Sequence[Mount]:
    """The base layer's parent: nothing at all."""
    return _view(daemon, snapshotter, "", undo)


def _view(daemon: Connection, snapshotter: str, parent: str, undo: ExitStack) -> Sequence[Mount]:
    key = f"sctl-view-{os.urandom(6).hex()}"
    found = daemon.snapshots.View(
        wire.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
    ).mounts
    undo.callback(_remove, daemon, snapshotter, key)
    return found


def _remove(daemon: Connection, snapshotter: str, key: str) -> None:
    with suppress(grpc.RpcError):
        # The lease of the command lets it be collected if this fails.
        daemon.snapshots.Remove(wire.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
