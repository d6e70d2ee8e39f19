"""Back-pressure instead of memory: disks that stand still, clients that do not read, tiny messages.

Nothing is timed: what can go on goes on while other calls are answered, and is counted when
nothing has moved for hundreds of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.services.content.v1 import content_pb2 as pb
from tests.disks import disk

from .content.session import ROOT, info, read
from .daemons import KINDS, Daemon
from .ocitar import sha256
from .wire import Wire

MIB = 1 << 20
_CALLS = 300
_ROOMY = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def held(daemon: Daemon) -> int:
    """The daemon's own memory, in MiB."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no RssAnon")


def settled(wire: Wire, *counts: Callable[[], int]) -> list[int]:
    """The counts, once they have stayed as they are while hundreds of calls were answered."""
    before: list[int] = []
    while True:
        now = [count() for count in counts]
        if now == before:
            return now
        before = now
        for _ in range(_CALLS):
            wire.version.Version(Empty())


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """A file system that lets every write wait."""
    subprocess.run(["fsfreeze", "--freeze", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path], check=True)


@pytest.fixture
def on_a_disk(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the same kind whose root is a file system of its own."""
    with disk(tmp_path, "ext4", size=1 << 29) as mount:
        started = KINDS[daemon.name]()
        started.root = mount / "root"
        try:
            started.start()
            yield started
        finally:
            started.close()


class Hurry:
    """A client that writes ``count`` pieces as fast as the stream takes them."""

    def __init__(self, wire: Wire, ref: str, piece: bytes, count: int) -> None:
        self.taken = 0
        self._ref, self._piece, self._count = ref, piece, count
        self._go = threading.Event()
        self._stream = wire.content.Write(self._requests(), timeout=120)
        next(self._stream)

    def _requests(self) -> Iterator[pb.WriteContentRequest]:
        yield pb.WriteContentRequest(action=pb.STAT, ref=self._ref)
        self._go.wait()
        size = len(self._piece)
        for number in range(self._count):
            yield pb.WriteContentRequest(action=pb.WRITE, offset=number * size, data=self._piece)
            self.taken += 1
        yield pb.WriteContentRequest(action=pb.COMMIT, offset=self._count * size, labels=ROOT)

    def go(self) -> None:
        """Lets it begin."""
        self._go.set()

    def finish(self) -> str:
        """Reads all answers; the digest of what was committed."""
        *_, last = self._stream
        assert (last.action, last.offset) == (pb.COMMIT, self._count * len(self._piece))
        return last.digest


def test_a_client_that_writes_faster_than_the_disk(on_a_disk: Daemon, unique: str) -> None:
    """Of 100 MiB that are ready to be sent to each of two ingests, a disk that stands still lets
    only what fits the windows and the daemon's bounded queue come in."""
    wire = Wire(on_a_disk.address, unique, ours=on_a_disk.ours)
    pieces, count = [os.urandom(MIB), os.urandom(MIB)], 100
    hurries = [Hurry(wire, f"r{at}", piece, count) for at, piece in enumerate(pieces)]
    before = held(on_a_disk)
    try:
        with frozen(on_a_disk.root.parent):
            for hurry in hurries:
                hurry.go()
            *taken, grown = settled(
                wire, *(lambda h=h: h.taken for h in hurries), lambda: held(on_a_disk)
            )
            assert max(taken) <= 40, taken
            assert grown - before <= 2 * 40
        digests = [hurry.finish() for hurry in hurries]
    finally:
        for hurry in hurries:
            hurry.go()
    assert digests == [sha256(piece * count) for piece in pieces]
    assert {info(wire, digest).size for digest in digests} == {count * MIB}
    assert held(on_a_disk) - before <= 64
    wire.close()


def test_readers_that_do_not_read(own_daemon: Daemon, unique: str) -> None:
    """Eight clients take the first message of 96 MiB each and no more; the daemon holds some of
    each, and the last of them still gets it all."""
    wire = Wire(own_daemon.address, unique, ours=own_daemon.ours)
    data = os.urandom(MIB) * 96
    hurry = Hurry(wire, "r", data[: 8 * MIB], 12)
    hurry.go()
    digest = hurry.finish()
    before = held(own_daemon)
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(8):
            reader = Wire(own_daemon.address, unique, ours=own_daemon.ours)
            stack.callback(reader.close)
            request = pb.ReadContentRequest(digest=digest)
            streams.append(reader.content.Read(request, timeout=120))
            assert len(next(streams[-1]).data) <= MIB
        [grown] = settled(wire, lambda: held(own_daemon))
        assert grown - before <= 8 * 8
        rest = b"".join(answer.data for answer in streams[-1])
        assert rest == data[-len(rest) :]
        assert len(rest) >= 95 * MIB
        for stream in streams[:-1]:
            stream.cancel()
    assert read(wire, digest, 5 * MIB, 3) == data[5 * MIB :][:3]
    assert held(own_daemon) - before <= 48
    wire.close()


def test_thousands_of_tiny_messages(own_daemon: Daemon, unique: str) -> None:
    """One byte in each, from a client that does not look at the answers meanwhile."""
    wire = Wire(own_daemon.address, unique, ours=own_daemon.ours)
    before = held(own_daemon)
    count = 20_000
    hurry = Hurry(wire, "r", b"x", count)
    hurry.go()
    _, grown = settled(wire, lambda: hurry.taken, lambda: held(own_daemon))
    assert grown - before <= 24
    assert hurry.finish() == sha256(b"x" * count)
    assert held(own_daemon) - before <= 24
    wire.close()
