"""The connection to the daemon: one channel, the namespace and lease headers, the stubs.

Made once per command from the global flags (``connect``). grpc is imported here and nowhere
earlier, and a service's stub only when it is asked for. RPC errors pass through to ``main``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from .errors import CliError, is_code

if TYPE_CHECKING:
    import argparse

    from protos.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub
    from protos.containerd.services.content.v1.content_pb2_grpc import ContentStub
    from protos.containerd.services.diff.v1.diff_pb2_grpc import DiffStub
    from protos.containerd.services.events.v1.events_pb2_grpc import EventsStub
    from protos.containerd.services.images.v1.images_pb2_grpc import ImagesStub
    from protos.containerd.services.introspection.v1.introspection_pb2_grpc import (
        IntrospectionStub,
    )
    from protos.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
    from protos.containerd.services.mounts.v1.mounts_pb2_grpc import MountsStub
    from protos.containerd.services.namespaces.v1.namespaces_pb2_grpc import NamespacesStub
    from protos.containerd.services.sandbox.v1.sandbox_pb2_grpc import ControllerStub, StoreStub
    from protos.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub
    from protos.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub
    from protos.containerd.services.version.v1.version_pb2_grpc import VersionStub
    from protos.supervisord.gc.v1.gc_pb2_grpc import GCStub

MAX_MESSAGE = 16 << 20
DEFAULT_SNAPSHOTTER = "overlayfs"
SNAPSHOTTER_LABEL = "containerd.io/defaults/snapshotter"
RUNTIME_LABEL = "containerd.io/defaults/runtime"

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take, whatever its name says: a busy daemon is not an absent one.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]


class _Details(NamedTuple):
    """What an interceptor passes on; the fields of ``grpc.ClientCallDetails``."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Headers(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the namespace, the lease and the deadline of the command to every call."""

    def __init__(self, namespace: str, deadline: float | None) -> None:
        self.namespace = namespace
        self.lease = ""
        self.deadline = deadline

    def _call(self, proceed: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        metadata = [("containerd-namespace", self.namespace), *(details.metadata or ())]
        if self.lease:
            metadata.append(("containerd-lease", self.lease))
        timeout = details.timeout
        if timeout is None and self.deadline is not None:
            timeout = max(0.001, self.deadline - time.monotonic())
        return proceed(
            _Details(details.method, timeout, metadata, details.credentials,
                     details.wait_for_ready, None),
            request,
        )  # fmt: skip

    # One shape serves all four: the request is passed on untouched, whatever it is.
    intercept_unary_unary = _call  # type: ignore[assignment]
    intercept_unary_stream = _call  # type: ignore[assignment]
    intercept_stream_unary = _call  # type: ignore[assignment]
    intercept_stream_stream = _call  # type: ignore[assignment]


class Connection:
    """The daemon as one command sees it. Close it, or use it as a context manager."""

    def __init__(self, address: str, namespace: str, *, timeout: float = 0.0) -> None:
        self.address = address
        self.namespace = namespace
        # Small JSON blobs by digest, which never change: manifests are looked at more than once.
        self.blobs: dict[str, dict[str, Any]] = {}
        self._headers = _Headers(namespace, time.monotonic() + timeout if timeout else None)
        self._channel = grpc.insecure_channel(f"unix://{Path(address).absolute()}", _OPTIONS)
        self.channel = grpc.intercept_channel(self._channel, self._headers)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    @cached_property
    def containers(self) -> ContainersStub:
        from protos.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub

        return ContainersStub(self.channel)

    @cached_property
    def content(self) -> ContentStub:
        from protos.containerd.services.content.v1.content_pb2_grpc import ContentStub

        return ContentStub(self.channel)

    @cached_property
    def diff(self) -> DiffStub:
        from protos.containerd.services.diff.v1.diff_pb2_grpc import DiffStub

        return DiffStub(self.channel)

    @cached_property
    def events(self) -> EventsStub:
        from protos.containerd.services.events.v1.events_pb2_grpc import EventsStub

        return EventsStub(self.channel)

    @cached_property
    def gc(self) -> GCStub:
        from protos.supervisord.gc.v1.gc_pb2_grpc import GCStub

        return GCStub(self.channel)

    @cached_property
    def images(self) -> ImagesStub:
        from protos.containerd.services.images.v1.images_pb2_grpc import ImagesStub

        return ImagesStub(self.channel)

    @cached_property
    def introspection(self) -> IntrospectionStub:
        from protos.containerd.services.introspection.v1.introspection_pb2_grpc import (
            IntrospectionStub,
        )

        return IntrospectionStub(self.channel)

    @cached_property
    def leases(self) -> LeasesStub:
        from protos.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub

        return LeasesStub(self.channel)

    @cached_property
    def mounts(self) -> MountsStub:
        from protos.containerd.services.mounts.v1.mounts_pb2_grpc import MountsStub

        return MountsStub(self.channel)

    @cached_property
    def namespaces(self) -> NamespacesStub:
        from protos.containerd.services.namespaces.v1.namespaces_pb2_grpc import NamespacesStub

        return NamespacesStub(self.channel)

    @cached_property
    def sandbox_store(self) -> StoreStub:
        from protos.containerd.services.sandbox.v1.sandbox_pb2_grpc import StoreStub

        return StoreStub(self.channel)

    @cached_property
    def sandboxes(self) -> ControllerStub:
        from protos.containerd.services.sandbox.v1.sandbox_pb2_grpc import ControllerStub

        return ControllerStub(self.channel)

    @cached_property
    def snapshots(self) -> SnapshotsStub:
        from protos.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub

        return SnapshotsStub(self.channel)

    @cached_property
    def tasks(self) -> TasksStub:
        from protos.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub

        return TasksStub(self.channel)

    @cached_property
    def version(self) -> VersionStub:
        from protos.containerd.services.version.v1.version_pb2_grpc import VersionStub

        return VersionStub(self.channel)

    @cached_property
    def defaults(self) -> dict[str, str]:
        """The labels of the namespace, which may name defaults; none if it does not exist yet."""
        from protos.containerd.services.namespaces.v1.namespaces_pb2 import GetNamespaceRequest

        try:
            answer = self.namespaces.Get(GetNamespaceRequest(name=self.namespace))
        except grpc.RpcError as error:
            if is_code(error, "NOT_FOUND"):
                return {}
            raise
        return dict(answer.namespace.labels)

    def snapshotter(self, name: str) -> str:
        """The snapshotter to use: the one named, else the namespace's default, else overlayfs."""
        return name or self.defaults.get(SNAPSHOTTER_LABEL) or DEFAULT_SNAPSHOTTER

    @contextmanager
    def lease(self, hours: int = 24) -> Iterator[str]:
        """Keeps what is made inside from garbage collection; dropped at the end, or by its own
        expiry if this process is killed. Nested leases join the outer one."""
        from protos.containerd.services.leases.v1.leases_pb2 import CreateRequest, DeleteRequest

        if self._headers.lease:
            yield self._headers.lease
            return
        expires = datetime.now(UTC) + timedelta(hours=hours)
        labels = {"containerd.io/gc.expire": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
        name = f"sctl-{time.time_ns()}-{os.urandom(4).hex()}"
        lease = self.leases.Create(CreateRequest(id=name, labels=labels)).lease.id
        self._headers.lease = lease
        try:
            yield lease
        finally:
            self._headers.lease = ""
            # Nothing is lost if this fails: the lease ends by itself.
            with suppress(grpc.RpcError):
                self.leases.Delete(DeleteRequest(id=lease))


def connect(args: argparse.Namespace) -> Connection:
    """Connects as the global flags say.

    Raises CliError naming the socket when nobody listens there."""
    address = args.address.removeprefix("unix://")
    deadline = time.monotonic() + args.connect_timeout
    while (reason := _unreachable(address)) is not None:
        if time.monotonic() >= deadline:
            raise CliError(
                f"cannot connect to {address}: {reason} "
                "(is the daemon running? --address names another socket)"
            )
        time.sleep(0.02)
    return Connection(address, args.namespace, timeout=args.timeout)


def _unreachable(address: str) -> str | None:
    """Why nobody can be reached at the socket; None if somebody listens."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(address)
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
