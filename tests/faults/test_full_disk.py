"""The daemon on a disk without a free byte, or without a free inode.

Writes are refused with RESOURCE_EXHAUSTED and leave nothing, deletes and collections work, the
daemon starts, and with room again the same requests succeed. The disks are small and real: a tmpfs,
and an ext4 in a file, once with few inodes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.supervisord.check.v1 import check_pb2
from protos.supervisord.check.v1.check_pb2_grpc import CheckStub
from tests.conformance.daemons import Supervisord
from tests.conformance.ocitar import Member, folder, tar
from tests.conformance.wire import Wire
from tests.disks import disk

from .stored import Stored, refused

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
NAMESPACE = "full"
MANY = 4000
"""More small writes than the slack of any file can take."""

LAYER = tar([folder("d"), *(Member(f"d/{number}", b"x" * 5000) for number in range(40))])


@contextlib.contextmanager
def small(kind: str) -> Iterator[Path]:
    """A disk of 48 MiB; below the folder for temporary files, whose path is short."""
    with tempfile.TemporaryDirectory(prefix="full-") as base:
        if kind == "tmpfs":
            target = Path(base, "disk")
            target.mkdir()
            options = ["-t", "tmpfs", "-o", "size=48m,nr_inodes=20k", "tmpfs"]
            subprocess.run(["mount", *options, target], check=True)
            try:
                yield target
            finally:
                subprocess.run(["umount", "-l", target], check=True)
        else:
            inodes = ["-N", "1024"] if kind == "inodes" else []
            with disk(Path(base), "ext4", "-m", "0", *inodes, size=48 << 20) as target:
                yield target


class Box:
    """A daemon whose root is on a small disk."""

    def __init__(self, place: Path, kind: str) -> None:
        self.daemon = Supervisord()
        self.place = place
        self.kind = kind
        self.daemon.root = place / "root"
        self.filler = place / "filler"
        self.filler.mkdir()
        self.numbers = itertools.count()
        self.start()

    def start(self) -> None:
        self.daemon.start(timeout=60)
        self.wire = Wire(self.daemon.address, NAMESPACE, ours=True)
        self.stored = Stored(self.wire)

    def again(self, how: Callable[[], Any]) -> None:
        """Ends the daemon and starts it, on the disk as it is: full to the last."""
        self.wire.close()
        how()
        self.fill()
        self.start()

    def fill(self) -> None:
        """Takes all that is free."""
        if self.kind == "inodes":
            with contextlib.suppress(OSError):
                while True:
                    (self.filler / str(next(self.numbers))).touch()
            return
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError), (self.filler / "bytes").open("ab", 0) as file:
                while file.write(b"\0" * size) == size:
                    pass

    def empty(self) -> None:
        for path in self.filler.iterdir():
            path.unlink()

    def findings(self) -> list[str]:
        answers = CheckStub(self.wire.channel).Run(check_pb2.RunRequest())
        return [str(answer.finding) for answer in answers if answer.HasField("finding")]

    def close(self) -> None:
        self.wire.close()
        self.daemon.close()


@pytest.fixture(params=["tmpfs", "ext4", "inodes"])
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    with small(request.param) as place:
        made = Box(place, request.param)
        try:
            yield made
        finally:
            made.close()


def until_refused(call: Callable[[int], Any]) -> list[int]:
    """The numbers for which the call succeeded before it was refused."""
    for number in range(MANY):
        if refused(lambda: call(number), FULL):  # noqa: B023
            return list(range(number))
    raise AssertionError("the disk does not fill")


def test_a_full_disk(box: Box) -> None:
    stored = box.stored
    kept = stored.write("kept", b"k" * 100_000)
    layer = stored.write("layer", LAYER)
    for snapshotter in ("overlayfs", "native"):
        stored.apply(LAYER, stored.prepare(snapshotter, "a"))
        stored.commit(snapshotter, "one", "a")
        stored.prepare(snapshotter, "rw", "one")
    stored.image("image", LAYER)
    stored.lease("lease")
    doomed = [stored.write(f"doomed-{n}", f"doomed {n}".encode()) for n in range(20)]
    for number in range(20):
        stored.image(f"doomed-{number}", b"x")
        stored.prepare("overlayfs", f"doomed-{number}")
    box.fill()

    # Every verb that writes is refused in the end, and what was refused is not there.
    if box.kind != "inodes":  # records need none
        labels = {name: name * 4000 for name in "abcd"}
        made = until_refused(lambda n: stored.image(f"i{n}", LAYER, labels))
        assert stored.images() >= {f"i{n}" for n in made}
        assert f"i{len(made)}" not in stored.images()
        until_refused(lambda n: stored.lease(f"l{n}"))
    made = until_refused(lambda n: stored.prepare("overlayfs", f"p{n}", "one"))
    assert {f"p{n}" for n in made} <= stored.snapshots("overlayfs")
    assert f"p{len(made)}" not in stored.snapshots("overlayfs")
    until_refused(lambda n: stored.prepare("native", f"p{n}", "one"))
    until_refused(lambda n: stored.write(f"w{n}", b"%d" % n * 200_000))
    box.fill()
    assert refused(lambda: stored.write("refused", os.urandom(200_000)), FULL)
    assert refused(lambda: stored.apply(LAYER, stored.mounts("overlayfs", "rw")), FULL)
    if box.kind != "inodes":
        mounts = stored.mounts("overlayfs", "rw")
        assert refused(lambda: stored.diff([], mounts, "diff"), FULL)
    assert stored.read(kept) == b"k" * 100_000
    assert box.findings() == []

    # Deletes work, whoever takes what they free.
    stop = threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            box.fill()
            stop.wait(0.01)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for number in range(10):
            stored.delete_image(f"doomed-{number}", sync=number % 3 == 0)
            stored.remove("overlayfs", f"doomed-{number}")
            stored.delete_blob(doomed[number])
    finally:
        stop.set()
        thread.join()
    assert not stored.images() & {f"doomed-{number}" for number in range(10)}

    # It starts, after a death and after a clean stop, and deletes again.
    box.again(box.daemon.kill)
    assert kept in box.stored.blobs()
    box.stored.delete_image("doomed-10", sync=True)
    box.again(lambda: box.daemon.stop(30))
    assert box.stored.read(layer) == LAYER
    box.stored.delete_lease("lease")
    for number in range(11, 20):
        box.fill()
        box.stored.delete_blob(doomed[number])
        box.stored.remove("overlayfs", f"doomed-{number}")
    assert box.findings() == []

    # With room again, the same requests succeed.
    box.empty()
    stored = box.stored
    assert stored.write("refused", b"r" * 200_000) in stored.blobs()
    stored.prepare("overlayfs", "p-last", "one")
    stored.apply(LAYER, stored.mounts("overlayfs", "rw"))
    stored.image("i-last", LAYER)
    assert box.findings() == []
    everything(stored)
    box.wire.close()
    assert box.daemon.stop(30) == 0
    assert left(box.daemon.root) == []


def everything(stored: Stored) -> None:
    """Deletes all."""
    for ref in stored.refs():
        stored.abort(ref)
    for name in stored.images():
        stored.delete_image(name)
    for digest in stored.blobs():
        stored.delete_blob(digest)
    for snapshotter in ("overlayfs", "native"):
        for key in sorted(stored.snapshots(snapshotter), key=lambda key: key == "one"):
            stored.remove(snapshotter, key)
    stored.collect()


def left(root: Path) -> list[str]:
    """Files of blobs, ingests and snapshots."""
    content = root / "io.containerd.content.v1.content"
    found = [*(content / "blobs").glob("*/*"), *(content / "ingest").iterdir()]
    for snapshots in root.glob("io.containerd.snapshotter.v1.*/snapshots"):
        found += snapshots.iterdir()
    return [str(path) for path in found]
