"""Unpacking: each layer applied by the daemon onto a snapshot, committed under its chain id."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

import grpc

from protos.containerd.services.diff.v1 import diff_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as wire
from protos.containerd.types import types_pb2

from ..connection import Connection
from ..errors import CliError, is_code
from . import blobs
from .manifests import Manifest, chain_ids, diff_ids

UNCOMPRESSED = "containerd.io/uncompressed"

Step = Callable[[int, int], None]


def chain_of(daemon: Connection, manifest: Manifest) -> list[str]:
    """The chain ids of an image's layers, bottom first. Raises CliError for a bad config."""
    config = blobs.read_json(daemon, manifest.config.digest)
    ids = diff_ids(config, manifest.config.digest)
    if len(ids) != len(manifest.layers):
        raise CliError(
            f"image config {manifest.config.digest} names {len(ids)} layers, "
            f"its manifest {len(manifest.layers)}"
        )
    return chain_ids(ids)


def is_unpacked(daemon: Connection, chain: list[str], snapshotter: str) -> bool:
    """Whether the topmost layer's snapshot exists (which implies those below)."""
    return not chain or _exists(daemon, chain[-1], snapshotter)


def ensure(daemon: Connection, manifest: Manifest, snapshotter: str) -> str:
    """The name of the topmost snapshot, unpacking only where it does not exist yet."""
    chain = chain_of(daemon, manifest)
    if is_unpacked(daemon, chain, snapshotter):
        return chain[-1] if chain else ""
    return unpack(daemon, manifest, snapshotter)


def unpack(
    daemon: Connection, manifest: Manifest, snapshotter: str, step: Step | None = None
) -> str:
    """Makes the snapshots of an image that are missing and answers the name of the topmost.

    ``step`` is told the layer's number and the count before each. A failed layer leaves no
    snapshot of its own. Raises CliError when a layer is not what the config says."""
    chain = chain_of(daemon, manifest)
    ids = diff_ids(blobs.read_json(daemon, manifest.config.digest), manifest.config.digest)
    with daemon.lease():
        if not is_unpacked(daemon, chain, snapshotter):
            for number, layer in enumerate(manifest.layers):
                if step is not None:
                    step(number, len(chain))
                if _exists(daemon, chain[number], snapshotter):
                    continue
                parent = chain[number - 1] if number else ""
                described = types_pb2.Descriptor(
                    media_type=layer.media_type,
                    digest=layer.digest,
                    size=layer.size,
                    annotations=layer.annotations,
                )
                _apply(daemon, described, ids[number], chain[number], parent, snapshotter)
                blobs.label(daemon, layer.digest, {UNCOMPRESSED: ids[number]})
        if step is not None:
            step(len(chain), len(chain))
        top = chain[-1] if chain else ""
        if top:
            key = f"containerd.io/gc.ref.snapshot.{snapshotter}"
            blobs.label(daemon, manifest.config.digest, {key: top})
    return top


def _exists(daemon: Connection, key: str, snapshotter: str) -> bool:
    try:
        daemon.snapshots.Stat(wire.StatSnapshotRequest(snapshotter=snapshotter, key=key))
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            return False
        raise
    return True


def _apply(
    daemon: Connection,
    layer: types_pb2.Descriptor,
    diff_id: str,
    chain_id: str,
    parent: str,
    snapshotter: str,
) -> None:
    key = f"extract-{time.time_ns() % 1_000_000_000}-{os.urandom(3).hex()} {chain_id}"
    mounts = daemon.snapshots.Prepare(
        wire.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
    ).mounts
    try:
        applied = daemon.diff.Apply(diff_pb2.ApplyRequest(diff=layer, mounts=mounts)).applied
        if applied.digest != diff_id:
            raise CliError(
                f"layer {layer.digest} unpacks to {applied.digest}, "
                f"but the image config says {diff_id}"
            )
        daemon.snapshots.Commit(
            wire.CommitSnapshotRequest(
                snapshotter=snapshotter, name=chain_id, key=key, parent=parent
            )
        )
    except BaseException as error:
        with suppress(grpc.RpcError):
            daemon.snapshots.Remove(wire.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
        # Somebody else unpacked the same layer meanwhile: theirs is as good as ours.
        if isinstance(error, grpc.RpcError) and is_code(error, "ALREADY_EXISTS"):
            return
        raise
