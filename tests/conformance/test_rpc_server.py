"""Version, introspection, health, reflection, and what holds for every call."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.introspection.v1 import introspection_pb2 as pb

from .daemons import Daemon, running
from .wire import Wire

Code = grpc.StatusCode
SERVICES = (
    "containers.v1.Containers content.v1.Content diff.v1.Diff events.v1.Events images.v1.Images "
    "introspection.v1.Introspection leases.v1.Leases namespaces.v1.Namespaces "
    "snapshots.v1.Snapshots tasks.v1.Tasks version.v1.Version"
).split()


def test_version(wire: Wire) -> None:
    answer = wire.version.Version(Empty())
    assert answer.version
    without = wire.scoped("")
    assert without.version.Version(Empty()) == answer
    without.close()


def test_server_identity_is_kept(own_daemon: Daemon) -> None:
    wire = Wire(own_daemon.address, "default", ours=own_daemon.ours)
    first = wire.introspection.Server(Empty())
    assert len(first.uuid) == 36
    wire.close()
    own_daemon.restart()
    wire = Wire(own_daemon.address, "default", ours=own_daemon.ours)
    again = wire.introspection.Server(Empty())
    assert again.uuid == first.uuid
    if own_daemon.ours:
        assert again.pid == own_daemon.pid
        assert again.pidns > 0
    wire.close()


def test_plugins_and_their_filters(wire: Wire) -> None:
    everything = wire.introspection.Plugins(pb.PluginsRequest()).plugins
    assert len({(plugin.type, plugin.id) for plugin in everything}) == len(everything)
    (overlay,) = wire.introspection.Plugins(
        pb.PluginsRequest(filters=["type==io.containerd.snapshotter.v1,id==overlayfs"])
    ).plugins
    assert overlay.exports["root"].endswith("io.containerd.snapshotter.v1.overlayfs")
    assert [(p.os, p.architecture) for p in overlay.platforms] == [("linux", "amd64")]
    assert not overlay.HasField("init_err")
    with wire.refused(Code.INVALID_ARGUMENT, "filter", reference=Code.INVALID_ARGUMENT):
        wire.introspection.Plugins(pb.PluginsRequest(filters=["type="]))


def test_health(wire: Wire) -> None:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    assert (
        stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such"))
    assert caught.value.code() is Code.NOT_FOUND


@pytest.mark.only("supervisord", reason="containerd 1.6 does not serve reflection")
def test_reflection_lists_every_service(wire: Wire) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert {f"containerd.services.{name}" for name in SERVICES} <= names
    symbol = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="containerd.services.tasks.v1.Tasks"
    )
    (answer,) = stub.ServerReflectionInfo(iter([symbol]))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_unknown_method_and_service(wire: Wire) -> None:
    for path in ("/containerd.services.version.v1.Version/Nope", "/no.such.Service/Method"):
        call: Any = wire.channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
        assert caught.value.code() is Code.UNIMPLEMENTED


def test_a_call_without_a_namespace_is_refused(wire: Wire) -> None:
    without = wire.scoped("")
    with wire.refused(Code.FAILED_PRECONDITION, "namespace"):
        without.containers.List(containers_pb2.ListContainersRequest())
    without.close()


def test_a_malformed_namespace_is_refused(wire: Wire) -> None:
    for namespace in ("with space", "a/b", "-a", "x" * 77):
        bad = wire.scoped(namespace)
        with wire.refused(Code.INVALID_ARGUMENT, "namespace"):
            bad.containers.List(containers_pb2.ListContainersRequest())
        bad.close()


def test_a_garbled_request_is_refused(wire: Wire) -> None:
    call: Any = wire.channel.unary_unary("/containerd.services.containers.v1.Containers/Get")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff\xff")
    assert caught.value.code() in (Code.INTERNAL, Code.INVALID_ARGUMENT, Code.UNKNOWN)
    wire.version.Version(Empty())


def test_many_calls_at_once(wire: Wire) -> None:
    def ask(number: int) -> Any:
        return wire.containers.List(containers_pb2.ListContainersRequest())

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(300)))
    assert len(answers) == 300


def test_starts_quickly(daemon: Daemon) -> None:
    """The best of a few: the machine may be busy at any one of them."""
    times: list[float] = []
    while len(times) < 4 and min(times, default=9) >= 1.0:
        with running(daemon.name) as another:
            times.append(another.started_in)
    assert min(times) < 1.0
