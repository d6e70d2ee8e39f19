"""The plugins of the wire: one gRPC plugin per service, over the engines' plugins."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

from supervisord import __version__
from supervisord.contracts.plugins import GrpcService, PluginContext, Registration

GRPC = "io.containerd.grpc.v1"
SERVICE = "io.containerd.service.v1"
LEASE = "io.containerd.lease.v1"
EVENT = "io.containerd.event.v1"
METADATA = "io.containerd.metadata.v1"
GC = "io.containerd.gc.v1"


async def _version(context: PluginContext) -> Any:
    from protos.containerd.services.version.v1 import version_pb2
    from supervisord.services.version import VersionService

    descriptor = version_pb2.DESCRIPTOR.services_by_name["Version"]
    return GrpcService(descriptor, VersionService(f"v{__version__}", ""))


async def _namespaces(context: PluginContext) -> Any:
    from protos.containerd.services.namespaces.v1 import namespaces_pb2
    from supervisord.services.namespaces import NamespacesService

    descriptor = namespaces_pb2.DESCRIPTOR.services_by_name["Namespaces"]
    return GrpcService(descriptor, NamespacesService(context.get(SERVICE, "namespaces-service")))


async def _containers(context: PluginContext) -> Any:
    from protos.containerd.services.containers.v1 import containers_pb2
    from supervisord.services.containers import ContainersService

    descriptor = containers_pb2.DESCRIPTOR.services_by_name["Containers"]
    return GrpcService(descriptor, ContainersService(context.get(SERVICE, "containers-service")))


async def _content(context: PluginContext) -> Any:
    from protos.containerd.services.content.v1 import content_pb2
    from supervisord.services.content import ContentService

    descriptor = content_pb2.DESCRIPTOR.services_by_name["Content"]
    return GrpcService(descriptor, ContentService(context.get(SERVICE, "content-service")))


async def _images(context: PluginContext) -> Any:
    from protos.containerd.services.images.v1 import images_pb2
    from supervisord.services.images import ImagesService

    descriptor = images_pb2.DESCRIPTOR.services_by_name["Images"]
    images = ImagesService(context.get(SERVICE, "images-service"), context.get(GC))
    return GrpcService(descriptor, images)


async def _leases(context: PluginContext) -> Any:
    from protos.containerd.services.leases.v1 import leases_pb2
    from supervisord.services.leases import LeasesService

    descriptor = leases_pb2.DESCRIPTOR.services_by_name["Leases"]
    return GrpcService(descriptor, LeasesService(context.get(LEASE)))


async def _gc(context: PluginContext) -> Any:
    from protos.supervisord.gc.v1 import gc_pb2
    from supervisord.services.gc import GCService

    descriptor = gc_pb2.DESCRIPTOR.services_by_name["GC"]
    return GrpcService(descriptor, GCService(context.get(GC), context.get(METADATA).inspection))


async def _snapshots(context: PluginContext) -> Any:
    from protos.containerd.services.snapshots.v1 import snapshots_pb2
    from supervisord.services.snapshots import SnapshotsService

    descriptor = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
    return GrpcService(descriptor, SnapshotsService(context.get(SERVICE, "snapshots-service")))


async def _diff(context: PluginContext) -> Any:
    from protos.containerd.services.diff.v1 import diff_pb2
    from supervisord.services.diff import DiffService

    descriptor = diff_pb2.DESCRIPTOR.services_by_name["Diff"]
    differ, sync_fs = context.get(SERVICE, "diff-service")
    return GrpcService(descriptor, DiffService(differ, sync_fs=sync_fs))


async def _tasks(context: PluginContext) -> Any:
    from protos.containerd.services.tasks.v1 import tasks_pb2
    from supervisord.services.tasks import TasksService

    descriptor = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"]
    return GrpcService(descriptor, TasksService(context.get(SERVICE, "tasks-service")))


async def _events(context: PluginContext) -> Any:
    from protos.containerd.services.events.v1 import events_pb2
    from supervisord.services.events import EventsService

    descriptor = events_pb2.DESCRIPTOR.services_by_name["Events"]
    return GrpcService(descriptor, EventsService(context.get(EVENT)))


async def _introspection(context: PluginContext) -> Any:
    from protos.containerd.services.introspection.v1 import introspection_pb2
    from supervisord.services.introspection import IntrospectionService

    descriptor = introspection_pb2.DESCRIPTOR.services_by_name["Introspection"]
    return GrpcService(descriptor, IntrospectionService(context.plugins, context.root))


async def _health(context: PluginContext) -> Any:
    from grpc_health.v1 import health_pb2

    from supervisord.services.health import HealthService

    descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
    return GrpcService(descriptor, HealthService(lambda: _served(context)))


async def _reflection(context: PluginContext) -> Any:
    from supervisord.services.reflection import DESCRIPTOR, V1, ReflectionService

    service = ReflectionService(lambda: _served(context))
    return [GrpcService(DESCRIPTOR, service), GrpcService(DESCRIPTOR, service, name=V1)]


async def _check(context: PluginContext) -> Any:
    from protos.supervisord.check.v1 import check_pb2
    from supervisord.services.check import CheckService

    descriptor = check_pb2.DESCRIPTOR.services_by_name["Check"]
    root = str(Path(context.root).parent)  # all plugins have theirs in the daemon's
    metadata = context.get(METADATA)
    return GrpcService(descriptor, CheckService(lambda: metadata.checker, root))


def _served(context: PluginContext) -> Set[str]:
    names: set[str] = set()
    for instance in context.all(GRPC).values():
        for service in [instance] if isinstance(instance, GrpcService) else instance:
            names.add(service.name or service.descriptor.full_name)
    return names


REGISTRATIONS = (
    Registration(GRPC, "introspection", _introspection),
    Registration(GRPC, "check", _check, (METADATA,)),
    Registration(GRPC, "containers", _containers, (SERVICE,)),
    Registration(GRPC, "content", _content, (SERVICE,)),
    Registration(GRPC, "diff", _diff, (SERVICE,)),
    Registration(GRPC, "events", _events, (EVENT,)),
    Registration(GRPC, "gc", _gc, (GC, METADATA)),
    Registration(GRPC, "healthcheck", _health),
    Registration(GRPC, "images", _images, (SERVICE, GC)),
    Registration(GRPC, "leases", _leases, (LEASE,)),
    Registration(GRPC, "namespaces", _namespaces, (SERVICE,)),
    Registration(GRPC, "reflection", _reflection),
    Registration(GRPC, "snapshots", _snapshots, (SERVICE,)),
    Registration(GRPC, "tasks", _tasks, (SERVICE,)),
    Registration(GRPC, "version", _version),
)
