"""The plugins below the wire: events, snapshotters, content, metadata, collection, runtime.

Each start function is the one place where its concrete classes are named. The types are
containerd's; ``service.v1`` plugins are the engines under the names that its services have there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER
from snapshotters.registrations import SNAPSHOTTERS
from supervisord.contracts.errors import InvalidArgument, NotFound, Unavailable
from supervisord.contracts.plugins import PluginContext, Registration

if TYPE_CHECKING:
    from supervisord.contracts.mounts import MountManager
    from supervisord.runtime.zygote import Zygote

log = logging.getLogger(__name__)

CONTENT = "io.containerd.content.v1"
METADATA = "io.containerd.metadata.v1"
EVENT = "io.containerd.event.v1"
GC = "io.containerd.gc.v1"
LEASE = "io.containerd.lease.v1"
INTERNAL = "io.containerd.internal.v1"
RUNTIME = "io.containerd.runtime.v2"
SHIM = "io.supervisord.shim.v1"
DIFFER = "io.containerd.differ.v1"
MOUNTS = "io.containerd.mount-manager.v1"
SERVICE = "io.containerd.service.v1"
TTRPC = "io.containerd.ttrpc.v1"

_MERGE_WAYS = ("allow", "enable", "off")


async def _exchange(context: PluginContext) -> Any:
    from supervisord.events.exchange import Exchange

    exchange = Exchange()
    context.on_close(exchange.close)
    return exchange


async def _ttrpc_events(context: PluginContext) -> Any:
    from supervisord.events.ttrpc_service import service

    return service(context.get(EVENT))


async def _content(context: PluginContext) -> Any:
    root = str(context.config["root_path"] or context.root)
    context.export("root", root)
    return root


async def _metadata(context: PluginContext) -> Any:
    from supervisord.metadata.store import Metadata

    policy = context.config["content_sharing_policy"]
    if policy not in ("shared", "isolated"):
        raise ValueError(f"content_sharing_policy: {policy!r} is neither shared nor isolated")
    metadata = await Metadata.open(
        Path(context.root),
        snapshotters=context.all(SNAPSHOTTER),
        content_path=Path(context.get(CONTENT)),
        publisher=context.get(EVENT),
        policy=policy,
    )
    context.on_close(metadata.close)
    context.export("policy", policy)
    return metadata


async def _collector(context: PluginContext) -> Any:
    from supervisord.aio.owner import TaskOwner
    from supervisord.contracts.durations import seconds
    from supervisord.gc.policy import Thresholds
    from supervisord.gc.scheduler import Scheduler

    config = context.config
    for name in ("pause_threshold", "deletion_threshold", "mutation_threshold", "schedule_delay"):
        # containerd's names for what it exports.
        context.export(name.title().replace("_", ""), str(config[name]))
    metadata = context.get(METADATA)
    scheduler = Scheduler(
        metadata.garbage,
        Thresholds(
            pause_threshold=config["pause_threshold"],
            deletion_threshold=config["deletion_threshold"],
            mutation_threshold=config["mutation_threshold"],
            schedule_delay=seconds(config["schedule_delay"], "schedule_delay"),
            startup_delay=seconds(config["startup_delay"], "startup_delay"),
        ),
    )
    metadata.attach(scheduler)
    scheduler.start()
    context.on_close(scheduler.close)
    recovery = TaskOwner("recovery")
    recovery.spawn(metadata.recover(), "metadata")
    context.on_close(recovery.close)
    return scheduler


async def _leases(context: PluginContext) -> Any:
    return context.get(METADATA).leases


async def _zygote(context: PluginContext) -> Any:
    from supervisord.aio.owner import TaskOwner
    from supervisord.runtime.zygote import Zygote

    merge = context.config["merge_memory"]
    if merge not in _MERGE_WAYS:
        raise InvalidArgument(
            f"merge_memory: {merge!r} is not one of {', '.join(map(repr, _MERGE_WAYS))}"
        )
    if merge == "enable":
        await asyncio.to_thread(_enable_merging)
    zygote = Zygote(spares=True, merged=merge != "off")
    context.on_close(zygote.close)
    starting = TaskOwner("zygote start")
    starting.spawn(_warm(zygote), "shim")  # the first task need not wait for it, nor boot
    context.on_close(starting.close)
    return zygote


def _enable_merging() -> None:
    from supervisord.linux import merging

    try:
        if merging.switch_on():
            log.info("the kernel merges same pages from now on: %s", merging.SWITCH)
    except OSError as error:
        log.warning("same pages are not merged: %s: %s", merging.SWITCH, error.strerror)


async def _warm(zygote: Zygote) -> None:
    try:
        await zygote.start("shim")
    except Unavailable as error:  # the first request starts another one
        log.warning("zygote not started", extra={"error": error})


async def _runtime(context: PluginContext) -> Any:
    from supervisord.aio.owner import TaskOwner
    from supervisord.contracts.durations import seconds
    from supervisord.runtime.launch import Settings
    from supervisord.runtime.manager import TaskManager
    from supervisord.runtime.oci import OciRuntimes

    metadata = context.get(METADATA)
    settings = Settings(
        state=context.state,
        address=context.address,
        ttrpc_address=context.ttrpc_address,
        runtime_root=str(context.config["runtime_root"] or f"{context.state}/oci"),
        log_level=context.config["shim_log_level"],
        runtime_seconds=seconds(context.config["runtime_timeout"], "runtime_timeout"),
        shim_seconds=seconds(context.config["shim_timeout"], "shim_timeout"),
        exec_by_hand=context.config["exec_by_hand"],
        shims={**_brought(context), **named(context.config["runtimes"])},
        shim_env=environment(context.config),
    )
    owner = TaskOwner("oci runtimes")
    context.on_close(owner.close)
    Path(context.root).mkdir(mode=0o700, parents=True, exist_ok=True)
    runtimes = OciRuntimes(context.root, owner, context.config["oci_runtime"])
    manager = TaskManager(
        settings,
        metadata.containers,
        context.get(EVENT),
        context.get(INTERNAL, "zygote"),
        runtimes,
        metadata.content,
        metadata.leases,
        _mounts(context),
    )
    context.on_close(manager.close)
    await manager.open()
    return manager


def _brought(context: PluginContext) -> dict[str, str]:
    """The shims that other packages have brought: the plugin's id is the runtime's name, its
    instance the path of the executable. One that cannot be run is left out."""
    from supervisord.runtime.names import OURS

    shims: dict[str, str] = {}
    for name, instance in context.all(SHIM).items():
        path = str(instance)
        if name in OURS:
            log.warning("shim not used: the name is the daemon's own", extra={"shim": name})
        elif Path(path).is_absolute() and os.access(path, os.X_OK):
            shims[name] = path
        else:
            log.warning("shim is no executable", extra={"plugin": f"{SHIM}.{name}", "path": path})
    return shims


def named(runtimes: Mapping[str, Any]) -> dict[str, str]:
    """The shims that the configuration names. Raises InvalidArgument."""
    for name, path in runtimes.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise InvalidArgument(f"runtimes.{name}: must be the absolute path of a shim: {path!r}")
    return dict(runtimes)


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """What shims get besides the daemon's own environment. Raises InvalidArgument."""
    values = {"SCHED_CORE": "1"} if config["sched_core"] else {}
    for entry in config["env"]:
        name, found, value = entry.partition("=")
        if not name or not found:
            raise InvalidArgument(f"env: must be NAME=VALUE: {entry!r}")
        values[name] = value
    return values


def _mounts(context: PluginContext) -> MountManager | None:
    return next(iter(context.all(MOUNTS).values()), None)


async def _walking(context: PluginContext) -> Any:
    from supervisord.diff import Differ, configured
    from supervisord.diff.activated import Activated

    differ = Differ(
        context.get(METADATA).content,
        context.get(INTERNAL, "zygote"),
        context.state,
        limit=context.config["layer_limit"],
        entries=context.config["entry_limit"],
        processors=configured(context.config["stream_processors"]),
    )
    mounts = _mounts(context)
    return differ if mounts is None else Activated(differ, mounts)


async def _erofs(context: PluginContext) -> Any:
    from supervisord.diff.erofs import ErofsDiffer

    if context.config["enable_dmverity"]:
        raise InvalidArgument("enable_dmverity: dm-verity is not supported")
    content, workers = context.get(METADATA).content, context.get(INTERNAL, "zygote")
    return ErofsDiffer(content, workers, limit=context.config["layer_limit"])


async def _diff_service(context: PluginContext) -> Any:
    from supervisord.diff.turns import Turns

    differs = context.all(DIFFER)
    wanted = context.config["default"]
    missing = [name for name in wanted if name not in differs]
    if missing:
        raise NotFound(f"differ {missing[0]} (of io.containerd.differ.v1) did not start")
    return Turns([differs[name] for name in wanted]), context.config["sync_fs"]


async def _tasks_service(context: PluginContext) -> Any:
    return context.get(RUNTIME, "task")


async def _containers_service(context: PluginContext) -> Any:
    return context.get(METADATA).containers


async def _content_service(context: PluginContext) -> Any:
    return context.get(METADATA).content


async def _images_service(context: PluginContext) -> Any:
    return context.get(METADATA).images


async def _namespaces_service(context: PluginContext) -> Any:
    return context.get(METADATA).namespaces


async def _snapshots_service(context: PluginContext) -> Any:
    return context.get(METADATA).snapshots


async def _introspection_service(context: PluginContext) -> Any:
    return context.plugins


REGISTRATIONS = (
    Registration(EVENT, "exchange", _exchange, required=True),
    Registration(
        CONTENT,
        "content",
        _content,
        config={"root_path": ""},
        config_help={"root_path": ROOT_PATH_HELP},
        required=True,
    ),
    *SNAPSHOTTERS,
    Registration(
        METADATA,
        "sqlite",
        _metadata,
        (CONTENT, SNAPSHOTTER, EVENT),
        config={"content_sharing_policy": "shared"},
        config_help={
            "content_sharing_policy": '"shared": a namespace that names the digest of a blob which '
            'another has gets it at once; "isolated": it must bring the bytes.'
        },
        required=True,
    ),
    Registration(
        GC,
        "scheduler",
        _collector,
        (METADATA,),
        config={
            "pause_threshold": 0.02,
            "deletion_threshold": 0,
            "mutation_threshold": 100,
            "schedule_delay": "0s",
            "startup_delay": "100ms",
        },
        config_help={
            "pause_threshold": "Largest share of time in which collections may look for garbage "
            "and delete records; the removal of the data is not counted.",
            "deletion_threshold": "Deletions after which one starts at once; 0: as scheduled.",
            "mutation_threshold": "Changes after which the next scheduled one takes place.",
            "schedule_delay": "How long after a threshold is reached it starts.",
            "startup_delay": "How long after the start the first one takes place.",
        },
        required=True,
    ),
    Registration(LEASE, "manager", _leases, (METADATA, GC)),
    Registration(
        INTERNAL,
        "zygote",
        _zygote,
        config={"merge_memory": "allow"},
        config_help={
            "merge_memory": "Same memory pages of shims kept once by the kernel (KSM), a third of "
            "their memory instead of all: allow, where /sys/kernel/mm/ksm/run says so for this "
            "machine; enable, which says so; off, never."
        },
    ),
    Registration(
        RUNTIME,
        "task",
        _runtime,
        (METADATA, GC, EVENT, INTERNAL, SHIM, MOUNTS),
        config={
            "oci_runtime": "",
            "runtime_root": "",
            "runtime_timeout": "2m",
            "shim_timeout": "1m",
            "shim_log_level": "info",
            "exec_by_hand": True,
            "env": [],
            "sched_core": False,
            "runtimes": {},
        },
        config_help={
            "oci_runtime": "Name or path of the OCI runtime for containers that ask for none; "
            "empty for crun where it works on this machine, else runc.",
            "runtime_root": "Folder of the OCI runtimes' own state; empty for one below state.",
            "runtime_timeout": "How long a command of an OCI runtime may take before it is killed.",
            "shim_timeout": "How long a shim may take to answer a request that creates, starts and "
            "checkpoints nothing, and the program of a foreign shim to run.",
            "shim_log_level": "What shims write into their logs.",
            "exec_by_hand": "Shims enter a container of runc themselves to run another process in "
            "it, where that is all that runc would do; false calls runc always.",
            "env": "Further environment of shims, as NAME=VALUE.",
            "sched_core": "Whether no two shims, with what they run, may be on the same processor "
            "core at a time (core scheduling).",
            "runtimes": "Executables of shims by runtime name; io.containerd.runc.v2 is the "
            "daemon's own shim unless it is here.",
        },
    ),
    Registration(
        DIFFER,
        "walking",
        _walking,
        (METADATA, INTERNAL, MOUNTS),
        config={"layer_limit": 1 << 40, "entry_limit": 1 << 22, "stream_processors": {}},
        config_help={
            "layer_limit": "Most bytes of an uncompressed layer; 0 for any.",
            "entry_limit": "Most entries of a layer; 0 for any.",
            "stream_processors": "Programs for other media types, by id: see docs/layers.md.",
        },
    ),
    Registration(
        DIFFER,
        "erofs",
        _erofs,
        (METADATA, INTERNAL),
        config={"layer_limit": 1 << 40, "enable_dmverity": False},
        config_help={
            "layer_limit": "Most bytes of an uncompressed image; 0 for any.",
            "enable_dmverity": "Refused when true: blocks of images are not checked by dm-verity.",
        },
    ),
    Registration(TTRPC, "events", _ttrpc_events, (EVENT,)),
    Registration(SERVICE, "introspection-service", _introspection_service),
    Registration(SERVICE, "containers-service", _containers_service, (METADATA, GC)),
    Registration(SERVICE, "content-service", _content_service, (METADATA, GC)),
    Registration(SERVICE, "images-service", _images_service, (METADATA, GC)),
    Registration(SERVICE, "namespaces-service", _namespaces_service, (METADATA, GC)),
    Registration(SERVICE, "snapshots-service", _snapshots_service, (METADATA, GC)),
    Registration(
        SERVICE,
        "diff-service",
        _diff_service,
        (DIFFER,),
        config={"default": ["erofs", "walking"], "sync_fs": False},
        config_help={
            "default": "Differs in the order in which they are asked.",
            "sync_fs": "Whether an applied layer is flushed to the disk before the call ends.",
        },
    ),
    Registration(SERVICE, "tasks-service", _tasks_service, (RUNTIME,)),
)
