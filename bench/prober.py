"""A small client that calls a daemon again and again: ``python -m bench.prober SOCKET``.

A process of its own, so that nobody's work but the daemon's keeps it waiting. It writes ``ready``,
calls until its input ends, and then writes how long each call took, in milliseconds, as JSON.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from protos.containerd.services.containers.v1 import containers_pb2 as containers
from protos.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub
from protos.containerd.services.tasks.v1 import tasks_pb2 as tasks
from protos.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub
from protos.containerd.services.version.v1.version_pb2_grpc import VersionStub

_META = (("containerd-namespace", "bench-prober"),)
_EVERY = 0.01
_SECONDS = 60


def main(address: str) -> None:
    """Probes until the input ends."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        calls = _calls(channel)
        for call in calls:
            call()  # the connection, and what is loaded at the first use
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        took = []
        while not select.select([sys.stdin], [], [], _EVERY)[0]:
            for call in calls:
                began = time.perf_counter()
                call()
                took.append((time.perf_counter() - began) * 1e3)
    json.dump(took, sys.stdout)


def _calls(channel: grpc.Channel) -> list[Callable[[], object]]:
    version, running, store = VersionStub(channel), TasksStub(channel), ContainersStub(channel)
    record = containers.Container(
        id="prober",
        runtime=containers.Container.Runtime(name="io.containerd.runc.v2"),
        spec=Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}"),
    )

    def create() -> object:
        return store.Create(containers.CreateContainerRequest(container=record), metadata=_META)

    def delete() -> object:
        return store.Delete(containers.DeleteContainerRequest(id="prober"), metadata=_META)

    return [
        lambda: version.Version(Empty()),
        lambda: running.List(tasks.ListTasksRequest(), metadata=_META),
        create,
        delete,
    ]


@contextmanager
def probing(address: str) -> Iterator[list[float]]:
    """Milliseconds of all calls that were made during the block; there after it."""
    took: list[float] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.prober", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the prober did not start")
        yield took
        output, _ = process.communicate(timeout=_SECONDS)
        took += json.loads(output)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
