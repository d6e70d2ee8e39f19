"""Events: topics and their order, exactly as containerd has them, for whole life stories.

The expected lists were taken from Debian's containerd, and run against it. What only newer
versions publish (``/content/create``) is left out of the comparison.
"""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.events import events_pb2
from protos.containerd.services.events.v1 import events_pb2 as service_pb2
from protos.containerd.types import types_pb2

from .ctr import Ctr
from .fixtures import IMAGE, Shop
from .ocitar import Image
from .wire import Recorder, Wire, payload

NEWER = ("/content/create", "/content/delete")
UNPACK = ["/snapshot/prepare", "/snapshot/commit"]
RUN = ["/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start"]


def topics(recorder: Recorder) -> list[str]:
    """The topics in order, without those that only newer versions have."""
    return [topic for topic in recorder.topics() if topic not in NEWER]


def tell(recorder: Recorder, wire: Wire, expected: list[str]) -> None:
    """All of these have come, and nothing else, in this order.

    Containerd's shims send what they publish on their own, so there each side keeps its own
    order only: the tasks, and the rest."""
    for topic in set(expected):
        recorder.expect(topic, expected.count(topic))
    recorder.settle()
    found = topics(recorder)
    if wire.ours:
        assert found == expected
        return
    for of_shim in (True, False):
        side = [[t for t in all if t.startswith("/tasks/") is of_shim] for all in (found, expected)]
        assert side[0] == side[1], found


def events(recorder: Recorder, topic: str) -> list[Any]:
    """The decoded payloads of one topic."""
    return [payload(envelope) for envelope in recorder.events if envelope.topic == topic]


def test_import(ctr: Ctr, wire: Wire, image_tar: Path, image: Image) -> None:
    with wire.record() as recorder:
        ctr("i", "import", str(image_tar))
        recorder.settle()
    assert topics(recorder) == ["/images/create", *UNPACK, *UNPACK, *UNPACK]
    (create,) = events(recorder, "/images/create")
    assert create.name == IMAGE
    commits = events(recorder, "/snapshot/commit")
    assert [commit.name for commit in commits] == image.chain_ids
    prepares = events(recorder, "/snapshot/prepare")
    assert [prepare.parent for prepare in prepares] == ["", *image.chain_ids[:-1]]
    assert [prepare.key for prepare in prepares] == [commit.key for commit in commits]


def test_image_update_and_delete(ctr: Ctr, wire: Wire, image_tar: Path, image: Image) -> None:
    ctr("i", "import", str(image_tar))
    with wire.record() as recorder:
        ctr("i", "tag", IMAGE, "other:1")
        ctr("i", "label", "other:1", "a=b")
        ctr("i", "rm", "other:1")
        ctr("i", "rm", "--sync", IMAGE)
        recorder.settle()
    found = topics(recorder)
    assert found[:4] == ["/images/create", "/images/update", "/images/delete", "/images/delete"]
    (update,) = events(recorder, "/images/update")
    assert dict(update.labels) == {"a": "b"}
    assert [d.name for d in events(recorder, "/images/delete")] == ["other:1", IMAGE]


def test_run_and_remove(shop: Shop, unique: str) -> None:
    with shop.wire.record() as recorder:
        shop.ctr("run", "--rm", shop.image, unique, "sh", "-c", "exit 42", code=42)
        tell(
            recorder,
            shop.wire,
            [*RUN, "/tasks/exit", "/tasks/delete", "/snapshot/remove", "/containers/delete"],
        )
    (create,) = events(recorder, "/tasks/create")
    (start,) = events(recorder, "/tasks/start")
    (ended,) = events(recorder, "/tasks/exit")
    (delete,) = events(recorder, "/tasks/delete")
    assert create.container_id == start.container_id == delete.container_id == unique
    assert create.pid == start.pid == ended.pid == delete.pid > 0
    assert create.bundle.endswith(f"/{shop.namespace}/{unique}")
    assert [mount.type for mount in create.rootfs] == ["overlay"]
    assert create.io.stdout.endswith(f"{unique}-stdout")
    assert not create.io.terminal
    assert (ended.container_id, ended.id, ended.exit_status) == (unique, unique, 42)
    assert delete.exit_status == 42
    assert delete.exited_at == ended.exited_at
    assert abs(ended.exited_at.seconds - time.time()) < 10
    (container,) = events(recorder, "/containers/create")
    assert (container.id, container.image) == (unique, shop.image)
    assert container.runtime.name == "io.containerd.runc.v2"
    assert container.runtime.options.type_url == "containerd.runc.v1.Options"
    (removed,) = events(recorder, "/snapshot/remove")
    assert removed.key == unique


def test_detached_life_with_pause_and_kill(shop: Shop, unique: str) -> None:
    with shop.wire.record() as recorder:
        shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
        recorder.expect("/tasks/start")
        shop.ctr("t", "pause", unique)
        recorder.expect("/tasks/paused")
        shop.ctr("t", "resume", unique)
        recorder.expect("/tasks/resumed")
        shop.ctr("t", "kill", "-s", "KILL", unique)
        recorder.expect("/tasks/exit")
        shop.ctr("t", "rm", unique)
        recorder.expect("/tasks/delete")
        shop.ctr("c", "label", unique, "a=b")
        shop.ctr("c", "rm", unique)
        tell(
            recorder,
            shop.wire,
            [
                *RUN,
                "/tasks/paused",
                "/tasks/resumed",
                "/tasks/exit",
                "/tasks/delete",
                "/containers/update",
                "/snapshot/remove",
                "/containers/delete",
            ],
        )
    assert [e.container_id for e in events(recorder, "/tasks/paused")] == [unique]
    assert [e.container_id for e in events(recorder, "/tasks/resumed")] == [unique]
    assert events(recorder, "/tasks/exit")[0].exit_status == 137
    (update,) = events(recorder, "/containers/update")
    assert update.labels["a"] == "b"


def test_an_out_of_memory_kill_is_told_before_the_exit(shop: Shop, unique: str) -> None:
    """A limit that init exceeds at once. The kernel may report one kill more than once.

    Containerd's shim watches memory beside processes, so there the order is not certain."""

    def small(document: dict[str, Any]) -> None:
        memory = {"limit": 64 << 20, "swap": 64 << 20}
        document["linux"]["resources"]["memory"] = memory

    hungry = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
    with shop.wire.record() as recorder:
        shop.wire.run(unique, hungry, parent=shop.chain_id, change=small)
        assert shop.wire.wait(unique) == 137
        recorder.expect("/tasks/oom")
        recorder.expect("/tasks/exit")
        shop.wire.delete_task(unique)
        recorder.expect("/tasks/delete")
        recorder.settle()
    story = [topic for topic in topics(recorder) if topic.startswith("/tasks/")]
    ends = ["/tasks/oom"] * story.count("/tasks/oom") + ["/tasks/exit"]
    if not shop.wire.ours:
        story[2:-1] = sorted(story[2:-1], reverse=True)
    assert story == ["/tasks/create", "/tasks/start", *ends, "/tasks/delete"]
    assert {event.container_id for event in events(recorder, "/tasks/oom")} == {unique}


def test_exec(shop: Shop, unique: str) -> None:
    with shop.wire.record() as recorder:
        shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
        recorder.expect("/tasks/start")
        recorder.forget()
        shop.ctr("t", "exec", "--exec-id", "e1", unique, "sh", "-c", "exit 7", code=7)
        tell(recorder, shop.wire, ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"])
    (added,) = events(recorder, "/tasks/exec-added")
    (started,) = events(recorder, "/tasks/exec-started")
    (ended,) = events(recorder, "/tasks/exit")
    assert (added.container_id, added.exec_id) == (unique, "e1")
    assert (started.container_id, started.exec_id) == (unique, "e1")
    assert (ended.container_id, ended.id, ended.exit_status) == (unique, "e1", 7)
    assert started.pid == ended.pid > 0


def test_failed_start(shop: Shop, unique: str) -> None:
    with shop.wire.record() as recorder:
        shop.ctr.refused("run", "--rm", shop.image, unique, "no-such-command")
        recorder.expect("/containers/delete")
        recorder.settle()
    assert topics(recorder) == [
        "/snapshot/prepare",
        "/containers/create",
        "/snapshot/remove",
        "/containers/delete",
    ]


def test_namespaces(ctr: Ctr, wire: Wire, unique: str) -> None:
    with wire.record(f'namespace=="{unique}"', 'topic~="^/namespaces/"') as recorder:
        ctr("ns", "create", unique, "a=b")
        ctr("ns", "label", unique, "a=c")
        ctr("ns", "rm", unique)
        recorder.expect("/namespaces/delete")
        recorder.settle()
    assert topics(recorder) == ["/namespaces/create", "/namespaces/update", "/namespaces/delete"]
    if wire.ours:  # 1.6 puts the update into the caller's namespace, newer ones do not
        assert {envelope.namespace for envelope in recorder.events} == {unique}
    (create,) = events(recorder, "/namespaces/create")
    assert (create.name, dict(create.labels)) == (unique, {"a": "b"})


def test_ctr_events_prints_them(shop: Shop, unique: str) -> None:
    with shop.ctr.background("events") as process:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0.05)[0]:  # until it listens
            publish(shop.wire, "/marker/x", "none")
        shop.ctr("run", "--rm", shop.image, unique, "true")
        seen = []
        expected = [*RUN, "/tasks/exit", "/tasks/delete", "/snapshot/remove", "/containers/delete"]
        for line in process.stdout:
            words = line.decode().split()
            if words[4] == shop.namespace and words[5] != "/marker/x":
                seen.append(words[5])
            if len(seen) == len(expected):
                break
    if shop.wire.ours:
        assert seen == expected
    assert sorted(seen) == sorted(expected)


# --- the service itself ---------------------------------------------------------------------------


def test_publish_arrives_as_it_was(wire: Wire) -> None:
    request = service_pb2.PublishRequest(topic="/test/one")
    request.event.type_url, request.event.value = "some.Type", b"\x00\x01"
    with wire.record() as recorder:
        before = time.time()
        wire.events.Publish(request)
        recorder.settle()
    (envelope,) = recorder.events
    assert envelope.topic == "/test/one"
    assert envelope.namespace == wire.namespace
    assert (envelope.event.type_url, envelope.event.value) == ("some.Type", b"\x00\x01")
    assert before - 1 < envelope.timestamp.seconds + envelope.timestamp.nanos / 1e9 < before + 5


def test_forward_keeps_the_stamp_and_the_namespace(wire: Wire) -> None:
    envelope = types_pb2.Envelope(
        timestamp=Timestamp(seconds=1_600_000_000, nanos=7),
        namespace="elsewhere",
        topic="/tasks/oom",
    )
    envelope.event.type_url = "containerd.events.TaskOOM"
    envelope.event.value = events_pb2.TaskOOM(container_id="c").SerializeToString()
    with wire.record("namespace==elsewhere") as recorder:
        wire.events.Forward(service_pb2.ForwardRequest(envelope=envelope))
        recorder.settle()
    assert recorder.events == [envelope]


@pytest.mark.parametrize("topic", ["", "no-slash", "/", "/bad part/x", "//", "/a/"])
def test_malformed_topic_is_refused(wire: Wire, topic: str) -> None:
    request = service_pb2.PublishRequest(topic=topic)
    request.event.type_url = "some.Type"
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "topic"):
        wire.events.Publish(request)


def test_forward_of_a_malformed_envelope_is_refused(wire: Wire) -> None:
    stamp = Timestamp(seconds=1)
    for envelope in (
        types_pb2.Envelope(timestamp=stamp, namespace="bad namespace", topic="/a/b"),
        types_pb2.Envelope(timestamp=stamp, namespace="good", topic="bad"),
        types_pb2.Envelope(namespace="good", topic="/a/b"),
    ):
        with wire.refused(grpc.StatusCode.INVALID_ARGUMENT):
            wire.events.Forward(service_pb2.ForwardRequest(envelope=envelope))


@pytest.mark.parametrize("filter", ["topic=", 'topic=="open', "topic==/a/b", "==x"])
def test_malformed_filter_is_refused(wire: Wire, filter: str) -> None:
    """Containerd 1.6 answers UNKNOWN with the parser's message; ours says what is invalid."""
    stream = wire.events.Subscribe(service_pb2.SubscribeRequest(filters=[filter]), timeout=5)
    with wire.refused(
        grpc.StatusCode.INVALID_ARGUMENT, "filter", reference=grpc.StatusCode.UNKNOWN
    ):
        next(stream)


@pytest.mark.only("supervisord", reason="containerd finds a bad expression at the first event")
def test_malformed_expression_is_refused(wire: Wire) -> None:
    stream = wire.events.Subscribe(service_pb2.SubscribeRequest(filters=["topic~=("]), timeout=5)
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "filter"):
        next(stream)


def publish(wire: Wire, topic: str, id: str) -> None:
    """Publishes a TaskStart."""
    request = service_pb2.PublishRequest(topic=topic)
    request.event.type_url = "containerd.events.TaskStart"
    request.event.value = events_pb2.TaskStart(container_id=id, pid=7).SerializeToString()
    wire.events.Publish(request)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (['topic=="/tasks/start"'], ["a", "b"]),
        (['topic~="^/tasks/"'], ["a", "b", "c"]),
        (['topic!="/tasks/start"', "event.container_id==b"], ["b", "c", "d"]),
        (['topic=="/tasks/start",event.container_id==b'], ["b"]),
        (["event.container_id==d", "event.container_id==a"], ["a", "d"]),
        (["event.container_id~=[cd]"], ["c", "d"]),
    ],
)
def test_subscription_filters(wire: Wire, filters: list[str], expected: list[str]) -> None:
    scoped = [f"{filter},namespace=={wire.namespace}" for filter in filters]
    with wire.record(*scoped) as recorder:
        publish(wire, "/tasks/start", "a")
        publish(wire, "/tasks/start", "b")
        publish(wire, "/tasks/exit", "c")
        publish(wire, "/other/topic", "d")
        recorder.settle()
    assert [payload(e).container_id for e in recorder.events] == expected


def test_subscription_without_filter_sees_every_namespace(wire: Wire, unique: str) -> None:
    other = wire.scoped(unique)
    with wire.record('topic!="/never"') as recorder:
        publish(wire, "/tasks/start", "here")
        publish(other, "/tasks/start", "there")
        recorder.settle()
    other.close()
    found = [
        (e.namespace, payload(e).container_id) for e in recorder.events if e.topic == "/tasks/start"
    ]
    assert found == [(wire.namespace, "here"), (unique, "there")]


def test_order_of_one_publisher_is_kept(wire: Wire) -> None:
    with wire.record() as recorder:
        for number in range(200):
            publish(wire, "/tasks/start", f"c{number}")
        recorder.settle()
    ids = [payload(e).container_id for e in recorder.events]
    assert ids == [f"c{number}" for number in range(200)]
