"""Unpack workers for tests: forks of a real zygote, asked without an event loop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]


class Forks:
    """One zygote of the kind ``unpack``; close it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shims.zygote", str(theirs.fileno()), "unpack"],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        self._socket.settimeout(30)
        self._socket.recv(4096)

    def ask(self, arguments: Mapping[str, object], fds: Sequence[int]) -> int:
        """Forks a worker and answers its pid."""
        data = json.dumps({"seq": 1, "arguments": dict(arguments)}).encode()
        socket.send_fds(self._socket, [data], list(fds))
        answer: dict[str, int] = json.loads(self._socket.recv(4096))
        return answer["pid"]

    async def spawn(
        self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
    ) -> int:
        """As contracts.workers.WorkerSpawner."""
        assert kind == "unpack"
        return self.ask(arguments, fds)

    def run(self, blob: bytes | int, mounts: Sequence[object], **arguments: object) -> Any:
        """Applies a blob (bytes, or a descriptor) and answers the worker's result."""
        receiving, sending = os.pipe()
        try:
            with tempfile.TemporaryFile() as file:
                if isinstance(blob, bytes):
                    file.write(blob)
                    file.flush()
                    blob = file.fileno()
                self.ask({"mounts": mounts, **arguments}, [blob, sending])
            os.close(sending)
            sending = -1
            with open(receiving, "rb", closefd=False) as reading:
                return json.loads(reading.read())
        finally:
            os.close(receiving)
            if sending >= 0:
                os.close(sending)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)
