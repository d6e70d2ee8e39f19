"""The cases: each drives one daemon and yields figures with their values.

A case leaves the daemon as it found it, so that the order of cases does not matter.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import grpc
from google.protobuf.empty_pb2 import Empty

from bench import chain as _chain
from bench import contents, figures, heap, layers, streams
from bench import idle as _idle
from bench import images as _images
from bench import weight as _weight
from bench.bare import bare
from bench.client import META, PROCESS, Client, oci_spec, unique
from bench.figures import Figure, quantile
from bench.merging import merging
from protos.containerd.services.containers.v1 import containers_pb2 as containers
from protos.containerd.services.events.v1 import events_pb2 as events
from protos.containerd.services.namespaces.v1 import namespaces_pb2 as namespaces
from protos.containerd.services.tasks.v1 import tasks_pb2 as tasks

Values = Iterator[tuple[Figure, float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: ``count`` repetitions, the layer that is unpacked, and
    ``idle`` containers at a time."""

    count: int
    layer: bytes
    idle: int = 500


def _timed(action: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of ``count`` calls, after one that does not count."""
    action()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def rpc(client: Client, plan: Plan) -> Values:
    """The latency of calls that do next to nothing."""
    took = _timed(lambda: client.version.Version(Empty()), 300)
    yield figures.VERSION_P50, quantile(took, 0.5)
    yield figures.VERSION_P99, quantile(took, 0.99)
    request = namespaces.ListNamespacesRequest()
    took = _timed(lambda: client.namespaces.List(request), 300)
    yield figures.LIST_P50, quantile(took, 0.5)


def one_life(client: Client) -> list[float]:
    """Runs ``/bin/true`` from nothing to nothing; milliseconds of each phase and in all."""
    id = unique("life-")
    marks = [time.perf_counter()]
    steps: tuple[Callable[[], object], ...] = (
        lambda: client.create_container(id, ["/bin/true"]),
        lambda: client.start_task(id),
        lambda: client.wait(id),
        lambda: client.delete_task(id),
        lambda: client.delete_container(id),
    )
    for step in steps:
        step()
        marks.append(time.perf_counter())
    phases = [after - before for before, after in pairwise(marks)]
    return [seconds * 1e3 for seconds in (*phases, marks[-1] - marks[0])]


def lifecycle(client: Client, plan: Plan) -> Values:
    """Create, start, wait, delete, one container after the other."""
    one_life(client)
    rows = [one_life(client) for _ in range(plan.count)]
    for figure, column in zip(figures.LIFECYCLE, zip(*rows, strict=True), strict=True):
        yield figure, median(column)


def over_bare(client: Client, plan: Plan) -> Values:
    """Whole lives, and the same of the OCI runtime alone, in turn."""
    with bare(client.binary, client.group) as runtime:
        runtime.life()
        one_life(client)
        lives, alone = [], []
        for _ in range(plan.count):
            alone.append(runtime.life())
            lives.append(one_life(client)[-1])
    yield figures.BARE, median(alone)
    yield figures.OVER_BARE, median(lives) / median(alone)


def default(client: Client, plan: Plan) -> Values:
    """Lifecycles with the runtime that the daemon chooses where nobody names one."""
    with client.runtime(""):
        one_life(client)
        yield figures.DEFAULT, median(one_life(client)[-1] for _ in range(plan.count))


def parallel(client: Client, plan: Plan) -> Values:
    """Whole lifecycles by eight clients at a time."""
    count = plan.count * 2
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: one_life(client), range(count)))
    yield figures.PARALLEL, count / (time.perf_counter() - began)


def execs(client: Client, plan: Plan) -> Values:
    """``/bin/true`` in a running container: add, start, wait, delete."""
    id = unique("exec-")

    def once(exec_id: str) -> None:
        request = tasks.ExecProcessRequest(container_id=id, exec_id=exec_id)
        request.spec.type_url = PROCESS
        request.spec.value = json.dumps(oci_spec(id, ["/bin/true"])["process"]).encode()
        client.tasks.Exec(request, metadata=META, timeout=30)
        client.start_exec(id, exec_id)
        client.wait(id, exec_id)
        client.delete_exec(id, exec_id)

    with client.sleeping(id):
        yield figures.EXEC, median(_timed(lambda: once(unique("e")), plan.count))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _memory(pid: int, kind: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise LookupError(f"no {kind} of process {pid}")


def memory(client: Client, plan: Plan) -> Values:
    """What the shims of idle containers cost: the parents of their init processes."""
    with ExitStack() as stack:
        pids = [stack.enter_context(client.sleeping(unique("memory-"))) for _ in range(plan.count)]
        time.sleep(1)
        shims = {_parent(pid) for pid in pids}
        for figure, kind in ((figures.SHIM_PSS, "Pss"), (figures.SHIM_RSS, "Rss")):
            yield figure, sum(_memory(shim, kind) for shim in shims) / plan.count
        with merging():
            yield figures.SHIM_MERGED, sum(_memory(shim, "Pss") for shim in shims) / plan.count


def idle(client: Client, plan: Plan) -> Values:
    """Many idle containers."""
    yield from _idle.idle(client, plan.idle)


def stdout(client: Client, plan: Plan) -> Values:
    """A container's output."""
    yield from streams.stdout(client)


def blobs(client: Client, plan: Plan) -> Values:
    """Blobs written and read."""
    yield from contents.blobs(client)


def unpack(client: Client, plan: Plan) -> Values:
    """A gzip layer applied to a snapshot."""
    digest = client.write_blob(plan.layer)
    began = time.perf_counter()
    name = client.unpack(digest, len(plan.layer), layers.GZIP)
    yield figures.UNPACK, time.perf_counter() - began
    client.remove_snapshot(name)
    client.delete_blob(digest)


def chain(client: Client, plan: Plan) -> Values:
    """Snapshots over 128 layers."""
    with _chain.chain(client) as parent:
        _chain.once(client, parent)
        took = [_chain.once(client, parent) for _ in range(plan.count * 2)]
        commits = [_chain.commit(client, parent) for _ in range(plan.count)]
    yield figures.CHAIN, median(each.ready for each in took)
    yield figures.CHAIN_PREPARE, median(each.prepare for each in took)
    yield figures.CHAIN_COMMIT, median(commits)
    yield figures.CHAIN_REMOVE, median(each.remove for each in took)


def store(client: Client, plan: Plan) -> Values:
    """Two hundred container records made, listed and deleted."""
    count = 200
    ids = [unique("store-") for _ in range(count)]
    with ThreadPoolExecutor(16) as pool:
        began = time.perf_counter()
        list(pool.map(lambda id: client.create_record(id, ["/bin/true"]), ids))
        yield figures.STORE_CREATE, count / (time.perf_counter() - began)
        request = containers.ListContainersRequest()
        took = _timed(lambda: client.containers.List(request, metadata=META), 20)
        yield figures.STORE_LIST, quantile(took, 0.5)
        began = time.perf_counter()
        list(pool.map(client.delete_record, ids))
        yield figures.STORE_DELETE, count / (time.perf_counter() - began)


def collect(client: Client, plan: Plan) -> Values:
    """Images of a heap of 10 000 blobs and 1 000 snapshots go one after the other, each with a
    collection that the caller waits for, while somebody reads what stays."""
    took, during = [], []
    with heap.filled(client, heap.Size()) as full:
        for _ in range(max(plan.count // 2, 5)):
            with heap.reads(client, full) as reads:
                took.append(full.thin() * 1e3)
            during += reads.results()
        with heap.reads(client, full) as reads:
            time.sleep(sum(took) / 1e3)
    yield figures.COLLECT, median(took)
    yield figures.COLLECT_READ, max(during) * 1e3
    yield figures.COLLECT_READ_P99, quantile(during, 0.99) * 1e3
    yield figures.COLLECT_IDLE, max(reads.results()) * 1e3


def fanout(client: Client, plan: Plan) -> Values:
    """Two hundred events to eight subscribers."""
    subscribers, count = 8, 200
    topic = "/" + unique("bench")
    ready = threading.Barrier(subscribers + 1)
    late: list[float] = []

    def subscribe() -> int:
        request = events.SubscribeRequest(filters=[f'topic=="{topic}"'])
        stream = client.events.Subscribe(request, metadata=META, timeout=60)
        ready.wait()
        seen = 0
        try:
            for envelope in stream:
                late.append(time.time() - float(envelope.event.value))
                seen += 1
                if seen == count:
                    break
        except grpc.RpcError as error:
            raise RuntimeError(f"after {seen} events: {error.details()}") from None
        stream.cancel()
        return seen

    with ThreadPoolExecutor(subscribers) as pool:
        running = [pool.submit(subscribe) for _ in range(subscribers)]
        ready.wait()
        time.sleep(0.5)
        began = time.perf_counter()
        for _ in range(count):
            publish = events.PublishRequest(topic=topic)
            publish.event.type_url = "bench.Time"
            publish.event.value = repr(time.time()).encode()
            client.events.Publish(publish, metadata=META)
        for future in running:
            future.result(60)
        yield figures.EVENTS, count * subscribers / (time.perf_counter() - began)
    yield figures.EVENTS_P99, quantile(late, 0.99) * 1e3


def images(client: Client, plan: Plan) -> Values:
    """Images to and from a registry."""
    yield from _images.transfers(client.address)


def weight(client: Client, plan: Plan) -> Values:
    """Pulls of 2 GiB: memory, and who else waits."""
    yield from _weight.pulls(client.address)


CASES: dict[str, Callable[[Client, Plan], Values]] = {
    "rpc": rpc,
    "lifecycle": lifecycle,
    "bare": over_bare,
    "default": default,
    "parallel": parallel,
    "exec": execs,
    "memory": memory,
    "stdout": stdout,
    "content": blobs,
    "unpack": unpack,
    "chain": chain,
    "store": store,
    "collect": collect,
    "events": fanout,
    "idle": idle,
    "images": images,
    "weight": weight,
}

UNASKED = tuple(name for name in CASES if name not in ("idle", "collect", "images", "weight"))
"""What is run when no case is named; those left out take minutes."""
