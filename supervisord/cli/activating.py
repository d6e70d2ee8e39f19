"""Snapshots that mount(8) does not understand are mounted by the daemon: for ``run``, which looks
users up, and for ``images mount``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from .connection import Connection
from .errors import is_code

if TYPE_CHECKING:
    from protos.containerd.types.types_pb2 import Mount


def is_wanted(mounts: Sequence[Mount]) -> bool:
    """Whether they have types (``format/mkdir/overlay``) that only the mount manager knows."""
    return any("/" in mount.type for mount in mounts)


def activate(
    daemon: Connection, name: str, mounts: Sequence[Mount], labels: Mapping[str, str]
) -> Sequence[Mount]:
    """Has all of them mounted, and answers how to mount that somewhere else."""
    from protos.containerd.services.mounts.v1 import mounts_pb2 as wire

    request = wire.ActivateRequest(name=name, mounts=mounts, labels=labels, temporary=True)
    return daemon.mounts.Activate(request).info.system


def deactivate(daemon: Connection, name: str) -> None:
    """Takes them away; it is no failure that there are none."""
    from protos.containerd.services.mounts.v1 import mounts_pb2 as wire

    try:
        daemon.mounts.Deactivate(wire.DeactivateRequest(name=name))
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND", "UNIMPLEMENTED"):
            raise


@contextmanager
def mounted(daemon: Connection, mounts: Sequence[Mount]) -> Iterator[str]:
    """The folder where the daemon has mounted them, for the block."""
    name = f"sctl-{os.urandom(8).hex()}"
    with daemon.lease():
        try:
            yield activate(daemon, name, mounts, {})[0].source
        finally:
            deactivate(daemon, name)
