"""The daemon is killed at each of its effects in turn, while a client writes, unpacks and deletes.

After the restart each request either has been carried out whole or can be made again with the same
names; what was answered is there; and at the end nothing is left, neither rows nor files nor
processes. The effects are those of ``programs/effects.py``; a sample of them is taken, and with
``SUPERVISORD_TEST_ALL_EFFECTS=1`` all are.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.namespaces.v1 import namespaces_pb2
from protos.supervisord.check.v1 import check_pb2
from protos.supervisord.check.v1.check_pb2_grpc import CheckStub
from tests.conformance.ocitar import Member, folder, tar
from tests.disks import disk

from .counted import Counted
from .residue import Residue
from .stored import Stored, digest_of
from .test_full_disk import left
from .test_kill_anywhere import Life

WORKERS = 2
ALL = os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS", "")
"""All effects; ``2/8`` for the second of eight parts of them."""
STRIDE = 1 if ALL else 24
TAKEN = ("os.link", "os.rename", "/Commit begins", "/Apply begins", "/Diff begins")
COMMITTED = "_transaction is done"
"""Between these and the next effect something has changed that lasts."""

DATA = b"data" * 5000
LAYER = tar([folder("d"), Member("d/file", b"x" * 3000), Member("d/other", b"y")])
KINDS = ("overlayfs", "native", "btrfs", "erofs") if ALL else ("overlayfs", "native", "btrfs")
LEAST = 100


class StorageLife(Life):
    """A client that fills a namespace and empties it, however often the daemon dies."""

    def __init__(self, daemon: Counted) -> None:
        super().__init__(daemon, "")
        self.namespace = f"sdstore-{uuid.uuid4().hex[:8]}"
        self.wire = self.wire.scoped(self.namespace)

    def asks(self, call: Callable[[Stored], Any]) -> Any:
        """A request that is made until it is answered."""
        return self.request(lambda wire: call(Stored(wire)))

    def run(self) -> None:
        for ref, data in (("one", DATA), ("layer", LAYER)):
            self.asks(lambda s: s.write(ref, data))  # noqa: B023
            assert self.asks(lambda s: s.read(digest_of(data))) == data  # noqa: B023
        self.asks(lambda s: s.write("half", DATA + b"more", commit=False))
        self.asks(lambda s: s.abort("half"))
        assert self.asks(lambda s: s.refs()) == set()
        self.asks(lambda s: s.image("image", LAYER))
        assert self.asks(lambda s: s.images()) == {"image"}
        for kind in KINDS:
            self._snapshots(kind)
        self._garbage()
        self.asks(lambda s: s.delete_image("image", sync=True))
        self.asks(lambda s: s.delete_blob(digest_of(LAYER)))
        assert self.asks(lambda s: s.blobs()) == {digest_of(DATA)}
        self.asks(lambda s: s.delete_blob(digest_of(DATA)))
        request = namespaces_pb2.DeleteNamespaceRequest(name=self.namespace)
        self.request(lambda wire: wire.namespaces.Delete(request))

    def _snapshots(self, kind: str) -> None:
        self.asks(lambda s: s.prepare(kind, "a"))
        mounts = self.asks(lambda s: s.mounts(kind, "a"))
        assert self.asks(lambda s: s.apply(LAYER, mounts)) == digest_of(LAYER)
        self.asks(lambda s: s.commit(kind, "layer", "a"))
        assert self.asks(lambda s: s.snapshots(kind)) == {"layer"}
        self.asks(lambda s: s.prepare(kind, "rw", "layer"))
        self.asks(lambda s: s.view(kind, "view", "layer"))
        upper = self.asks(lambda s: s.mounts(kind, "view"))
        made = self.asks(lambda s: s.diff([], upper, f"diff-{kind}"))
        if made:
            assert self.asks(lambda s: s.read(made))
        for digest in self.asks(lambda s: s.blobs()) - {digest_of(DATA), digest_of(LAYER)}:
            self.asks(lambda s: s.delete_blob(digest))  # noqa: B023
        for key in ("view", "rw", "layer"):
            self.asks(lambda s: s.remove(kind, key))  # noqa: B023
        assert self.asks(lambda s: s.snapshots(kind)) == set()

    def _garbage(self) -> None:
        self.asks(lambda s: s.lease("lease"))
        garbage = b"nobody wants it"

        def write(stored: Stored) -> None:
            held = stored.wire.scoped(lease="lease")
            try:
                Stored(held).write("garbage", garbage, {"a": "b"})
            finally:
                held.close()

        self.asks(write)
        assert digest_of(garbage) in self.asks(lambda s: s.blobs())
        self.asks(lambda s: s.delete_lease("lease"))
        self.asks(lambda s: s.collect())
        assert digest_of(garbage) not in self.asks(lambda s: s.blobs())

    def expect_nothing(self) -> None:
        """Waits until removals are done; then nothing is left, and nothing is wrong."""
        deadline = time.monotonic() + 10
        while True:
            found = left(self.daemon.root) + self.request(findings, done=set())
            if not found:
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


def findings(wire: Any) -> list[str]:
    answers = CheckStub(wire.channel).Run(check_pb2.RunRequest())
    return [str(answer.finding) for answer in answers if answer.HasField("finding")]


def sample(names: list[str]) -> list[int]:
    """The numbers of the effects at which the daemon is killed: with every second transaction."""
    chosen = {at for at, name in enumerate(names, 1) if any(sign in name for sign in TAKEN)}
    chosen.update([at for at, name in enumerate(names, 1) if COMMITTED in name][::2])
    return sorted(chosen | set(range(STRIDE, len(names) + 1, STRIDE)))


def part(numbers: list[int]) -> list[int]:
    """Those that this run is about."""
    which, slash, parts = ALL.partition("/")
    return numbers[int(which) - 1 :: int(parts)] if slash else numbers


@contextlib.contextmanager
def living() -> Iterator[StorageLife]:
    """A counted daemon, and its client. What it stores is in memory: death by signal needs no disk,
    and it dies often."""
    daemon = Counted()
    with (
        tempfile.TemporaryDirectory(prefix="kill-", dir="/dev/shm") as root,
        disk(Path(root), "btrfs") as volume,
    ):
        daemon.root = Path(root, "root")
        daemon.root.mkdir()
        # A mount of its own for the snapshotter that needs one.
        place = daemon.root / "io.containerd.snapshotter.v1.btrfs"
        place.symlink_to(volume)
        try:
            daemon.start(timeout=60)
            life = StorageLife(daemon)
            try:
                life.run()  # what happens once only is not counted
                yield life
            finally:
                life.close()
        finally:
            daemon.close()


def lives(worker: int) -> list[str]:
    """Lives with one death each, at the worker's share of the effects; answers what went wrong."""
    with living() as life:
        residue = Residue(life.daemon, life.namespace)
        life.daemon.order("daemon", -1)
        life.run()
        names = life.daemon.effects()
        names = [name for name in names if name.startswith("daemon ")]
        assert len(names) > LEAST, names
        for number in part(sample(names))[worker::WORKERS]:
            life.daemon.order("daemon", number)
            try:
                life.run()
                life.daemon.order("daemon", 0)
                life.expect_nothing()
                residue.expect_none()
            except (AssertionError, grpc.RpcError) as error:
                return [f"daemon at {number}, {life.last}: {error!r}"]
        assert life.deaths
    return []


@pytest.mark.timeout(900)  # for all effects, on a busy machine
def test_the_daemon() -> None:
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        wrong = [line for lines in pool.map(lives, range(WORKERS)) for line in lines]
    assert not wrong, "\n".join(wrong)
