"""The shim's end of a ttrpc connection."""

from __future__ import annotations

import socket
import time

import pytest

from shims import rpc
from shims.loop import Loop
from supervisord.ttrpc.frames import Frame


class Wire(rpc.Wire):
    def received(self, frame: Frame) -> None:
        raise AssertionError("nobody sends anything")

    def lost(self) -> None:
        """Nothing waits."""


@pytest.mark.parametrize("reads", [False, True])
def test_last_words_wait_for_a_reader_only_a_moment(
    reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_FLUSH_SECONDS", 0.1)
    loop = Loop()
    ours, theirs = socket.socketpair()
    wire = Wire(loop, ours.detach())
    words = bytes(4 << 20)
    wire.send(words)
    received = 0
    with theirs:
        theirs.setblocking(False)
        begun = time.monotonic()
        while time.monotonic() - begun < 30:
            wire.flush()
            if not reads or received == len(words):
                break
            received += len(theirs.recv(len(words)))
        assert received == (len(words) if reads else 0)
        wire.close()
    loop.close()
