"""The case of a container's output: how fast it comes through, and what that costs its shim."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import figures
from bench.client import Client, unique
from bench.figures import Figure

_SIZE = 1 << 30
_BUFFER = 1 << 20


def stdout(client: Client) -> Iterator[tuple[Figure, float]]:
    """One GiB through a FIFO, and the processor time of the shim meanwhile."""
    id, got = unique("stdout-"), 0
    words = ["/bin/sh", "-c", f"dd if=/dev/zero bs=64k count={_SIZE >> 16}; read end"]
    buffer = bytearray(_BUFFER)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}" for name in ("stdin", "stdout", "stderr")]
        for path in paths:
            os.mkfifo(path)
        # containerd 1.6 creates nothing before somebody reads both.
        reader, errors = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in paths[1:]]
        try:
            client.create_container(id, words)
            shim = _parent(client.create_task(id, *paths))
            os.set_blocking(reader, True)
            client.start(id)
            began, before = time.perf_counter(), _processor(shim)
            while got < _SIZE:
                got += os.readv(reader, [buffer])
            yield figures.STDOUT, (_SIZE >> 20) / (time.perf_counter() - began)
            yield figures.STDOUT_CPU, _processor(shim) - before
        finally:
            os.close(reader)
            os.close(errors)
    client.kill(id)
    client.wait(id)
    client.delete_task(id)
    client.delete_container(id)


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, those after the name."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _parent(pid: int) -> int:
    return int(_fields(pid)[1])


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    user, system = _fields(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
