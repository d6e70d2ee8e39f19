"""``python -m bench soak``: thousands of lifecycles and execs, and what they leave behind.

One daemon, one container that lives through it all, and clients that run containers and execs of
every kind: some fail, are killed, or are never started. Between rounds, when all is quiet, memory
and everything countable is noted. At the end nothing may be left, and memory may not have grown
by more than ``LIMIT`` for each operation, over the second half of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench import census, layers
from bench.client import META, PROCESS, Client, oci_spec, unique
from bench.daemons import running
from protos.containerd.services.events.v1 import events_pb2 as events
from protos.containerd.services.tasks.v1 import tasks_pb2 as tasks

LIMIT = {"daemon": 64, "zygote": 8, "shim": 16}
"""Bytes that a process may grow by for each operation. What is kept of an operation is never
smaller than an object or two; the heap's own ups and downs are."""

_SECONDS = 60
_QUIET = 1.0
_QUIET_SECONDS = 30.0


@dataclass(slots=True)
class Sample:
    """One look between two rounds: memory in bytes by process, and counts."""

    lifecycles: int
    execs: int
    memory: dict[str, int]
    counts: dict[str, int]


@dataclass(slots=True)
class Soak:
    """One run on a daemon that serves."""

    client: Client
    realm: census.Realm
    daemon: int
    shim: int = 0
    zygote: int = 0
    long_lived: str = ""
    samples: list[Sample] = field(default_factory=list)
    lifecycles: int = 0
    execs: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, rounds: int, lifecycles: int, execs: int, parallel: int) -> None:
        """Runs that many of each in every round, ``parallel`` at a time, and looks after each."""
        self.long_lived = f"{self.realm.prefix}long"
        self.client.create_container(self.long_lived, ["/bin/sleep", "864000"])
        init = self.client.start_task(self.long_lived)
        self.shim = int(Path(f"/proc/{init}/stat").read_text().rsplit(")", 1)[1].split()[1])
        names = census.processes(self.realm)
        self.zygote = min(pid for pid, name in names.items() if name == "supervisord-zyg")
        try:
            for _ in range(rounds):
                with ThreadPoolExecutor(parallel) as pool:
                    for number in range(max(lifecycles, execs)):
                        if number < lifecycles:
                            pool.submit(self._safely, self._lifecycle, number)
                        if number < execs:
                            pool.submit(self._safely, self._exec, number)
                self.lifecycles += lifecycles
                self.execs += execs
                self._look()
        finally:
            self._remove(self.long_lived)

    def _safely(self, operation: Callable[[int], None], number: int) -> None:
        """One that fails is told at the end; the others go on."""
        try:
            operation(number)
        except grpc.RpcError as error:
            reason = error.details() if isinstance(error, grpc.Call) else str(error)
            self.failures.append(f"{operation.__name__.strip('_')} {number}: {reason}")

    def _remove(self, id: str) -> None:
        """A container that runs, or has ended."""
        try:
            request = tasks.KillRequest(container_id=id, signal=9, all=True)
            self.client.tasks.Kill(request, metadata=META, timeout=_SECONDS)
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.NOT_FOUND:
                raise
        self.client.wait(id)
        self.client.delete_task(id)
        self.client.delete_container(id)

    # One operation ------------------------------------------------------------------------

    def _lifecycle(self, number: int) -> None:
        id = unique(self.realm.prefix)
        kind = number % 6
        command = {0: ["/bin/missing"], 1: ["/bin/sleep", "600"], 2: ["/bin/echo", "x" * 4096]}
        self.client.create_container(id, command.get(kind, ["/bin/true"]))
        try:
            if kind == 0:
                _fails(lambda: self.client.start_task(id))
                return
            with _Fifo(self.realm.folder, id, kind == 2) as stdout:
                self.client.start_task(id, stdout=stdout)
                try:
                    if kind == 1:
                        self._watch(id)
                finally:
                    if kind == 1:
                        self._kill(id)
                    self.client.wait(id)
                    self.client.wait(id)  # and once more, when it is known
                    self.client.delete_task(id)
        finally:
            self.client.delete_container(id)

    def _watch(self, id: str) -> None:
        """Subscribes, waits without patience, lists, and leaves an exec running."""
        stream = self.client.events.Subscribe(
            events.SubscribeRequest(filters=['topic~="/tasks/"']), metadata=META
        )
        waiting = self.client.tasks.Wait.future(tasks.WaitRequest(container_id=id), metadata=META)
        self.client.tasks.List(tasks.ListTasksRequest(), metadata=META, timeout=_SECONDS)
        self.client.tasks.Metrics(tasks.MetricsRequest(), metadata=META, timeout=_SECONDS)
        waiting.cancel()
        stream.cancel()
        self._add_exec(id, "left", ["/bin/sleep", "600"])
        self.client.start_exec(id, "left")

    def _exec(self, number: int) -> None:
        id, exec_id = self.long_lived, unique("e-")
        kind = number % 6
        command = {0: ["/bin/missing"], 1: ["/bin/sleep", "600"], 2: ["/bin/echo", "y" * 4096]}
        with _Fifo(self.realm.folder, exec_id, kind == 2) as stdout:
            self._add_exec(id, exec_id, command.get(kind, ["/bin/true"]), stdout)
            if kind == 0:
                _fails(lambda: self.client.start_exec(id, exec_id))
            elif kind != 3:
                self.client.start_exec(id, exec_id)
                if kind == 1:
                    self._kill(id, exec_id)
                self.client.wait(id, exec_id)
            self.client.delete_exec(id, exec_id)

    def _add_exec(self, id: str, exec_id: str, args: Sequence[str], stdout: str = "") -> None:
        request = tasks.ExecProcessRequest(container_id=id, exec_id=exec_id, stdout=stdout)
        request.spec.type_url = PROCESS
        request.spec.value = json.dumps(oci_spec(id, args)["process"]).encode()
        self.client.tasks.Exec(request, metadata=META, timeout=_SECONDS)

    def _kill(self, id: str, exec_id: str = "") -> None:
        request = tasks.KillRequest(container_id=id, exec_id=exec_id, signal=9)
        self.client.tasks.Kill(request, metadata=META, timeout=_SECONDS)

    # Looking ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Notes a sample when counts have stopped to change: work behind answers is done then."""
        pids = {"daemon": self.daemon, "zygote": self.zygote, "shim": self.shim}
        deadline = time.monotonic() + _QUIET_SECONDS
        last: dict[str, int] = {}
        since = time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < _QUIET:
            counts = census.counts(self.realm, pids)
            if counts != last:
                last, since = counts, time.monotonic()
            time.sleep(0.25)
        memory = {name: census.anonymous(pid) for name, pid in pids.items()}
        self.samples.append(Sample(self.lifecycles, self.execs, memory, last))
        text = ", ".join(f"{name} {size >> 10}" for name, size in memory.items())
        sys.stderr.write(f"soak: {self.lifecycles} lifecycles, {self.execs} execs: KiB {text}\n")

    def verdict(self) -> list[str]:
        """What has been left or has grown too much; empty when all is well."""
        middle, last = self.samples[len(self.samples) // 2 - 1], self.samples[-1]
        found = [
            f"{name}: {middle.counts.get(name, 0)} -> {count}"
            for name, count in last.counts.items()
            if count > middle.counts.get(name, 0)
        ]
        if self.failures:
            found.append(f"{len(self.failures)} failures: {self.failures[0]}")
        operations = last.lifecycles + last.execs - middle.lifecycles - middle.execs
        for name, size in last.memory.items():
            if (size - middle.memory[name]) / operations > LIMIT[name]:
                grown = (size - middle.memory[name]) / operations
                found.append(f"memory of the {name}: {grown:.0f} bytes for each operation")
        return found


class _Fifo:
    """A pipe that somebody reads to its end while the block runs; "" where none is wanted."""

    def __init__(self, folder: Path, name: str, wanted: bool) -> None:
        self._path = folder / f"{name}.out" if wanted else None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> str:
        if self._path is None:
            return ""
        os.mkfifo(self._path)
        self._reader = threading.Thread(target=self._path.read_bytes)
        self._reader.start()
        return str(self._path)

    def __exit__(self, *_: object) -> None:
        if self._path is None or self._reader is None:
            return
        # Where nobody has opened the other side, the reader would wait for ever.
        os.close(os.open(self._path, os.O_RDWR | os.O_NONBLOCK))
        self._reader.join()
        self._path.unlink()


def _fails(action: Callable[[], object]) -> None:
    try:
        action()
    except grpc.RpcError:
        return
    raise RuntimeError("a program that is not there was started")


def soaked(
    base: Path, runtime: str, rounds: int, lifecycles: int, execs: int, parallel: int
) -> Soak:
    """A daemon below ``base`` that has gone through it all, and is gone."""
    mark = unique("soak")
    realm = census.Realm(mark, base, f"{mark}-")
    with running("supervisord", base, {census.MARK: mark}, in_memory=False) as daemon:
        client = Client(daemon.address, runtime, mark)
        try:
            client.load_base(layers.busybox())
            soak = Soak(client, realm, daemon.pid)
            soak.run(rounds, lifecycles, execs, parallel)
        finally:
            client.close()
    # The zygote and the spare end when they notice that the daemon has.
    deadline = time.monotonic() + _QUIET_SECONDS
    while (left := census.processes(realm)) and time.monotonic() < deadline:
        time.sleep(0.05)
    soak.failures += [f"still there after the daemon: {name}" for name in left.values()]
    census.remove_group(mark)
    return soak


def main(argv: Sequence[str]) -> int:
    """Answers 1 if something was left, or memory grew."""
    parser = argparse.ArgumentParser(prog="./dev bench soak", description=__doc__)
    parser.add_argument("--lifecycles", type=int, default=2000, help="in all (2000)")
    parser.add_argument("--execs", type=int, default=5000, help="in all (5000)")
    parser.add_argument("--rounds", type=int, default=10, help="looks on the way (10)")
    parser.add_argument("--parallel", type=int, default=8, help="at a time (8)")
    parser.add_argument("--runtime", default="runc", help="OCI runtime (runc)")
    parser.add_argument("--json", metavar="FILE", help="write the samples there")
    arguments = parser.parse_args(argv)
    rounds = max(2, arguments.rounds)
    work = arguments.lifecycles // rounds, arguments.execs // rounds
    with tempfile.TemporaryDirectory(prefix="sv-soak-") as base:
        soak = soaked(Path(base), arguments.runtime, rounds, *work, arguments.parallel)
    found = soak.verdict()
    if arguments.json:
        rows = [[s.lifecycles, s.execs, s.memory, s.counts] for s in soak.samples]
        Path(arguments.json).write_text(json.dumps(rows, indent=1))
    for name, count in soak.samples[-1].counts.items():
        sys.stdout.write(f"{name:40} {soak.samples[0].counts.get(name, 0):8} {count:8}\n")
    for line in found:
        sys.stderr.write(f"soak: failed: {line}\n")
    return int(bool(found))
