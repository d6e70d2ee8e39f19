"""The plugins of images: transfers, and the service over them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.plugins import GrpcService, PluginContext, Registration, State

if TYPE_CHECKING:
    from supervisord.images.transfers import Transfers
    from supervisord.images.unpacking import Target

GRPC = "io.containerd.grpc.v1"
METADATA = "io.containerd.metadata.v1"
GC = "io.containerd.gc.v1"
INTERNAL = "io.containerd.internal.v1"
SERVICE = "io.containerd.service.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
DIFFER = "io.containerd.differ.v1"
STREAMING = "io.containerd.streaming.v1"
TRANSFER = "io.containerd.transfer.v1"
VERIFIER = "io.containerd.image-verifier.v1"

_REBASE = "rebase"
_COUNTS = (
    "max_concurrent_downloads",
    "max_concurrent_unpacks",
    "max_concurrent_uploaded_layers",
    "max_ranges_per_layer",
    "max_requests_per_host",
    "max_bandwidth",
)
_OVERLAYS = ("erofs", "overlayfs")
"""Snapshotters whose folders are the upper ones of overlays."""


async def _transfers(context: PluginContext) -> Any:
    """What is wrong with the configuration is told now, though most is loaded later."""
    from supervisord.aio.owner import TaskOwner
    from supervisord.contracts.durations import seconds
    from supervisord.images.late import LateTransfers, begun

    for status in context.plugins.statuses():
        if status.type == VERIFIER and status.state is not State.OK:
            # Without it images would be pulled that nobody has judged.
            raise ValueError(f"image verifier {status.id} did not start: {status.reason}")
    for name in _COUNTS:
        if context.config[name] < 0:
            raise InvalidArgument(f"{name}: must not be negative: {context.config[name]}")
    stall = seconds(context.config["progress_timeout"], "progress_timeout")
    made = AsyncExitStack()
    context.on_close(made.aclose)
    late = LateTransfers(lambda: _made(context, made, stall))
    metadata = context.get(METADATA)
    recovery = TaskOwner("transfers' recovery")
    names = [namespace.name for namespace in metadata.namespaces.list()]
    recovery.spawn(late.recover(begun(metadata.leases, names)), "snapshots")
    context.on_close(recovery.close)
    return late


async def _made(context: PluginContext, closers: AsyncExitStack, stall: float) -> Transfers:
    await asyncio.to_thread(importlib.import_module, "supervisord.images.transfers")
    from supervisord.images.pull.limits import Limits
    from supervisord.images.registry.keeper import NOBODY, Docker
    from supervisord.images.registry.session import Patience
    from supervisord.images.transfers import Defaults, Transfers
    from supervisord.images.unpacking import Unpacker

    config = context.config
    metadata = context.get(METADATA)
    differ, _ = context.get(SERVICE, "diff-service")
    unpacker = Unpacker(
        metadata.content,
        metadata.leases,
        differ,
        downloads=config["max_concurrent_downloads"],
        unpacks=config["max_concurrent_unpacks"],
    )
    closers.push_async_callback(unpacker.close)
    defaults = Defaults(
        _targets(context, metadata.snapshots),
        config["snapshotter"],
        [root for root in config["config_path"].split(":") if root],
        Patience(stall=stall),
        Limits(config["max_requests_per_host"], config["max_bandwidth"]),
        config["max_ranges_per_layer"],
        Docker(Path(config["docker_config"])) if config["docker_config"] else NOBODY,
        config["max_concurrent_uploaded_layers"],
        context.all(VERIFIER),
    )
    transfers = Transfers(metadata.content, metadata.images, metadata.leases, unpacker, defaults)
    closers.push_async_callback(transfers.close)
    return transfers


def _targets(context: PluginContext, snapshots: Mapping[str, Any]) -> dict[str, Target]:
    """The snapshotters into which images are unpacked, with what each can do."""
    from supervisord.images.unpacking import Target

    abilities = {
        status.id: status.capabilities
        for status in context.plugins.statuses()
        if status.type == SNAPSHOTTER
    }
    return {
        name: Target(name, service, _REBASE in abilities.get(name, ()), name in _OVERLAYS)
        for name, service in snapshots.items()
    }


async def _verifier(context: PluginContext) -> Any:
    from supervisord.contracts.durations import seconds
    from supervisord.images.verifying import Programs

    config = context.config
    each = seconds(config["per_verifier_timeout"], "per_verifier_timeout")
    return Programs(config["bin_dir"], config["max_verifiers"], each)


async def _transfer_service(context: PluginContext) -> Any:
    from protos.containerd.services.transfer.v1 import transfer_pb2
    from supervisord.services.transfer_late import LateTransferService

    descriptor = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]
    service = LateTransferService(context.get(TRANSFER, "local"), context.get(STREAMING, "manager"))
    return GrpcService(descriptor, service)


async def _registries(context: PluginContext) -> Any:
    from protos.supervisord.registries.v1 import registries_pb2
    from supervisord.services.transfer_late import LateRegistriesService

    descriptor = registries_pb2.DESCRIPTOR.services_by_name["Registries"]
    streams = context.get(STREAMING, "manager")
    service = LateRegistriesService(context.get(TRANSFER, "local"), streams)
    return GrpcService(descriptor, service)


REGISTRATIONS = (
    Registration(
        TRANSFER,
        "local",
        _transfers,
        (METADATA, GC, INTERNAL, SERVICE, SNAPSHOTTER, DIFFER, VERIFIER),
        config={
            "config_path": "",
            "snapshotter": "overlayfs",
            "max_concurrent_downloads": 8,
            "max_concurrent_unpacks": 8,
            "max_concurrent_uploaded_layers": 6,
            "max_ranges_per_layer": 3,
            "max_requests_per_host": 8,
            "max_bandwidth": 0,
            "progress_timeout": "30s",
            "docker_config": "",
        },
        config_help={
            "config_path": "Folders of hosts (hosts.toml), with colons between them, for clients "
            "that name none.",
            "snapshotter": "Where images are unpacked for clients that name no snapshotter.",
            "max_concurrent_downloads": "Most layers that are downloaded at a time.",
            "max_concurrent_unpacks": "Most layers that are unpacked at a time.",
            "max_concurrent_uploaded_layers": "Most layers that are pushed at a time.",
            "max_ranges_per_layer": "Parts of 4 MiB of one large layer that are downloaded at a "
            "time; 1 for one stream.",
            "max_requests_per_host": "Most requests for layers to one registry at a time.",
            "max_bandwidth": "Bytes a second of all downloads; 0 for any.",
            "docker_config": "A config.json of docker's with credentials for clients that bring "
            "none; empty for none.",
            "progress_timeout": "How long a registry may send nothing before a download is "
            "tried anew; there is no limit for a whole download.",
        },
    ),
    Registration(
        VERIFIER,
        "bindir",
        _verifier,
        config={
            "bin_dir": "/opt/containerd/image-verifier/bin",
            "max_verifiers": 10,
            "per_verifier_timeout": "10s",
        },
        config_help={
            "bin_dir": "A folder of programs that are asked before an image is pulled; all have "
            "to allow it. Without the folder every image may be pulled.",
            "max_verifiers": "Most programs that are asked, in order of their names; below 0 all.",
            "per_verifier_timeout": "How long one may take; then the image is not pulled.",
        },
    ),
    Registration(GRPC, "registries", _registries, (TRANSFER, STREAMING)),
    Registration(GRPC, "transfer", _transfer_service, (TRANSFER, STREAMING)),
)
