"""Creates a container: options, rootfs, streams, runtime; each step undone if a later one fails."""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH110, PTH112, PTH208
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.errors import Error, InvalidArgument
from supervisord.contracts.identifiers import check_identifier
from supervisord.linux import cgroups

from . import log
from .bundle import Bundle
from .console import ConsoleSocket
from .container import Container, Publish
from .loop import Loop
from .process import Process
from .reaper import Reaper
from .restore import Restore
from .runtime import Runtime
from .stdio import Stdio, Wishes


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for all containers of this shim. The runtime's state folder is
    ``runtime_root/namespace``."""

    namespace: str
    runtime: str
    runtime_root: str


async def create(
    loop: Loop, reaper: Reaper, defaults: Defaults, request: Any, publish: Publish
) -> Container:
    """Makes a container from a CreateTaskRequest (v2 or v3).

    Raises InvalidArgument, Unknown (the runtime's words); nothing is left then."""
    check_identifier(request.id, "id")
    options = decode_options(request.options)
    bundle = Bundle(request.bundle.rstrip("/"))
    if not os.access(f"{bundle.path}/config.json", os.R_OK):
        raise InvalidArgument(f"bundle: {request.bundle!r} has no config.json")
    runtime = Runtime(
        loop,
        reaper,
        options.binary_name or defaults.runtime,
        f"{options.root or defaults.runtime_root}/{defaults.namespace}",
        bundle.path,
        options.systemd_cgroup,
    )
    wishes = Wishes(request.stdin, request.stdout, request.stderr, request.terminal)
    stdio = Stdio(loop, reaper, wishes)
    init = Process(loop, "", wishes, stdio, is_exec=False)
    init.id = request.id
    container = Container(
        loop,
        reaper,
        request.id,
        defaults.namespace,
        bundle,
        runtime,
        init,
        publish,
        (options.io_uid, options.io_gid),
    )
    if options.shim_cgroup:
        join_cgroup(options.shim_cgroup)
    bundle.prepare(runtime.binary, runtime.root, runtime.systemd_cgroup)
    undo: list[Callable[[], None]] = [bundle.unmount]
    try:
        bundle.mount(request.rootfs)
        if request.checkpoint:
            container.restore = Restore(
                request.checkpoint,
                request.parent_checkpoint,
                options.criu_work_path or f"{bundle.path}/criu-work",
                options.no_pivot_root,
            )
            return container
        undo.append(stdio.close)
        await _run(container, options)
    except BaseException:
        for step in reversed(undo):
            _undone(step)
        raise
    return container


async def _run(container: Container, options: options_pb2.Options) -> None:
    """The runtime's part. A container that it had made is deleted if what follows fails."""
    loop, runtime, init = container.loop, container.runtime, container.init
    pid_file = container.bundle.init_pid_file
    no_pivot, no_keyring = options.no_pivot_root, options.no_new_keyring
    made = False
    with container.reaper.early:
        try:
            if init.wishes.terminal:
                with ConsoleSocket(container.bundle.path, "init.pty") as console:
                    pid = await runtime.create(
                        container.id,
                        pid_file,
                        None,
                        console=console.path,
                        no_pivot=no_pivot,
                        no_new_keyring=no_keyring,
                    )
                    made = True
                    master = await console.master(loop)
                await init.stdio.attach(master, container.id, container.namespace)
            else:
                streams = await init.stdio.open(container.id, container.namespace, *container.owner)
                pid = await runtime.create(
                    container.id,
                    pid_file,
                    streams,
                    no_pivot=no_pivot,
                    no_new_keyring=no_keyring,
                )
                made = True
                init.stdio.given()
            container.created(pid)
        except BaseException:
            if made:
                try:
                    await runtime.delete(container.id, force=True)
                except Error as error:
                    log.error("a failed create left a container", id=container.id, error=error)
            raise


def _undone(step: Callable[[], None]) -> None:
    try:
        step()
    except (Error, OSError) as error:
        log.error("a failed create left something", step=repr(step), error=error)


def decode_options(value: Any) -> options_pb2.Options:
    """The runtime options of an Any; defaults where it is empty. Raises InvalidArgument."""
    if not value.type_url and not value.value:
        return options_pb2.Options()
    name = value.type_url.rpartition("/")[2]
    if name != options_pb2.Options.DESCRIPTOR.full_name:
        if not value.value:
            return options_pb2.Options()
        raise InvalidArgument(f"options: type {value.type_url!r} is not containerd.runc.v1.Options")
    try:
        return options_pb2.Options.FromString(value.value)
    except ValueError as error:
        raise InvalidArgument(f"options: malformed: {error}") from error


def join_cgroup(path: str) -> None:
    """Moves this process into a control group. Raises InvalidArgument."""
    root = cgroups.ROOT
    folders = (
        [root]
        if cgroups.is_unified(root)
        else [f"{root}/{name}" for name in os.listdir(root) if os.path.isdir(f"{root}/{name}")]
    )
    joined = 0
    for folder in folders:
        file = f"{folder}/{path.strip('/')}/cgroup.procs"
        if not os.path.exists(file):
            continue
        try:
            with open(file, "w") as procs:
                procs.write(str(os.getpid()))
            joined += 1
        except OSError as error:
            raise InvalidArgument(f"shim_cgroup: joining {path!r}: {error}") from error
    if not joined:
        raise InvalidArgument(f"shim_cgroup: {path!r} does not exist")
