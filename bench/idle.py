"""Many idle containers: what they cost the daemon, how fast they are listed, who stays awake."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench import census, figures
from bench.client import META, Client, unique
from bench.figures import Figure, quantile
from protos.containerd.services.containers.v1 import containers_pb2 as containers
from protos.containerd.services.tasks.v1 import tasks_pb2 as tasks

_WATCHED_SECONDS = 10.0
_LISTS = 30
_MAX_IDLE_SECONDS = 20.0
_CREDENTIALS = struct.Struct("iII")


def idle(client: Client, count: int) -> Iterator[tuple[Figure, float]]:
    """Makes ``count`` containers that sleep, looks, and removes them."""
    daemon = _server(client.address)
    with client.sleeping(unique("idle-")):  # what the first one costs is not for each
        before = census.memory(daemon, "Rss")
        with ExitStack() as stack:
            with ThreadPoolExecutor(8) as pool:
                ready = list(
                    pool.map(lambda _: _entered(client.sleeping(unique("idle-"))), range(count))
                )
            removals = stack.enter_context(ThreadPoolExecutor(8))
            for leave, _ in ready:
                stack.callback(removals.submit, leave)
            _until_quiet(daemon)
            grown = (census.memory(daemon, "Rss") - before) / 1024
            yield figures.IDLE_RSS, grown / count
            shims = {_parent(pid) for _, pid in ready}
            yield figures.IDLE_AWAKE, _wakeups([daemon])
            yield figures.IDLE_SHIMS_AWAKE, _wakeups(list(shims))
            yield figures.IDLE_PSS, sum(census.memory(s, "Pss") for s in shims) / 1024 / count
            yield (
                figures.IDLE_TASKS,
                _median(lambda: client.tasks.List(tasks.ListTasksRequest(), metadata=META)),
            )
            yield (
                figures.IDLE_CONTAINERS,
                _median(
                    lambda: client.containers.List(
                        containers.ListContainersRequest(), metadata=META
                    )
                ),
            )


def _entered(manager: object) -> tuple[Callable[[], object], int]:
    pid: int = manager.__enter__()  # type: ignore[attr-defined]
    return lambda: manager.__exit__(None, None, None), pid  # type: ignore[attr-defined]


def _server(address: str) -> int:
    """The pid of who listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _median(action: Callable[[], object]) -> float:
    """Milliseconds of a call, after one that does not count."""
    action()
    took = []
    for _ in range(_LISTS):
        began = time.perf_counter()
        action()
        took.append((time.perf_counter() - began) * 1e3)
    return quantile(took, 0.5)


def _until_quiet(daemon: int) -> None:
    """Until the daemon has nothing left to do for what was made."""
    deadline = time.monotonic() + _MAX_IDLE_SECONDS
    while time.monotonic() < deadline and _switches([daemon], 1.0) > 20:
        pass


def _wakeups(pids: list[int]) -> float:
    """How often all threads of these processes were woken, per second."""
    return _switches(pids, _WATCHED_SECONDS) / _WATCHED_SECONDS


def _switches(pids: list[int], seconds: float) -> int:
    before = sum(map(_voluntary, pids))
    time.sleep(seconds)
    return sum(map(_voluntary, pids)) - before


def _voluntary(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    )
