"""A snapshot over many layers: prepared over the wire, and mounted as a client does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.client import META, ROOTED, SNAPSHOTTER, Client, unique
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from protos.containerd.types.types_pb2 import Mount
from supervisord.linux import syscalls

LAYERS = 128
_PAGE = 4096 - 512  # from where on ctr names layers relative to the folder that they are in


class Took(NamedTuple):
    """Milliseconds of one snapshot's steps."""

    prepare: float
    mount: float
    remove: float

    @property
    def ready(self) -> float:
        """From the request until it is mounted."""
        return self.prepare + self.mount


@contextmanager
def chain(client: Client) -> Iterator[str]:
    """The name of the last of many layers, each on the one before it."""
    names: list[str] = []
    try:
        for _ in range(LAYERS):
            names.append(_layer(client, names[-1] if names else ""))
        yield names[-1]
    finally:
        for name in reversed(names):
            client.remove_snapshot(name)


def once(client: Client, parent: str) -> Took:
    """Prepares a snapshot, mounts it, and takes both away."""
    key = unique("chain-")
    with tempfile.TemporaryDirectory() as target:
        began = time.perf_counter()
        mounts = _prepare(client, key, parent)
        prepared = time.perf_counter()
        _mount(mounts, target)
        mounted = time.perf_counter()
        syscalls.umount2(os.fsencode(target), 0)
        unmounted = time.perf_counter()
        client.remove_snapshot(key)
        removed = time.perf_counter()
    steps = (prepared - began, mounted - prepared, removed - unmounted)
    return Took(*(seconds * 1e3 for seconds in steps))


def commit(client: Client, parent: str) -> float:
    """Milliseconds that a commit takes of a snapshot with nothing in it."""
    key = unique("commit-")
    _prepare(client, key, parent)
    began = time.perf_counter()
    _commit(client, f"{key}-done", key)
    took = time.perf_counter() - began
    client.remove_snapshot(f"{key}-done")
    return took * 1e3


def _layer(client: Client, parent: str) -> str:
    name = unique("layer-")
    (mount,) = _prepare(client, f"{name}-work", parent)
    upper = mount.source if mount.type == "bind" else _option(mount.options, "upperdir")
    Path(upper, name).write_text(name)
    _commit(client, name, f"{name}-work")
    return name


def _prepare(client: Client, key: str, parent: str) -> Sequence[Mount]:
    request = snapshots.PrepareSnapshotRequest(
        snapshotter=SNAPSHOTTER, key=key, parent=parent, labels=ROOTED
    )
    return client.snapshots.Prepare(request, metadata=META).mounts


def _commit(client: Client, name: str, key: str) -> None:
    request = snapshots.CommitSnapshotRequest(
        snapshotter=SNAPSHOTTER, name=name, key=key, labels=ROOTED
    )
    client.snapshots.Commit(request, metadata=META)


def _mount(mounts: Sequence[Mount], target: str) -> None:
    """One mount(2), with what the daemon answered; too many options for a page are cut down to
    relative paths, as ctr has it."""
    (mount,) = mounts
    options = list(mount.options)
    if sum(map(len, options)) < _PAGE:
        _mount2(mount, target, options)
        return
    lowers = _option(options, "lowerdir").split(":")
    common = os.path.commonpath(lowers)
    short = ":".join(os.path.relpath(each, common) for each in lowers)
    options = [each for each in options if not each.startswith("lowerdir=")]
    before = os.open(".", os.O_PATH)
    os.chdir(common)
    try:
        _mount2(mount, target, [*options, f"lowerdir={short}"])
    finally:
        os.fchdir(before)
        os.close(before)


def _mount2(mount: Mount, target: str, options: Sequence[str]) -> None:
    words = [mount.source, target, mount.type, ",".join(options)]
    source, place, kind, data = map(os.fsencode, words)
    syscalls.mount(source, place, kind, 0, data)


def _option(options: Sequence[str], name: str) -> str:
    return next(each for each in options if each.startswith(f"{name}=")).partition("=")[2]
