"""Creates a container: options, rootfs, streams, runtime; each step undone if a later one fails."""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH110, PTH112, PTH208
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.errors import Error, FailedPrecondition, InvalidArgument
from supervisord.contracts.identifiers import check_identifier
from supervisord.linux import cgroups, systemd

from . import criu, log
from .bundle import Bundle, read
from .command import Streams
from .console import ConsoleSocket
from .container import Container, Publish, observe
from .loop import Loop
from .process import Process
from .reaper import Reaper
from .restore import Restore
from .running import describe
from .runtime import COMMAND_SECONDS, Runtime, RuntimeFailure
from .stdio import Stdio, Wishes


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for all containers of this shim. The runtime's state folder is
    ``runtime_root/namespace``."""

    namespace: str
    runtime: str
    runtime_root: str
    exec_by_hand: bool = True
    seconds: float = COMMAND_SECONDS
    """The longest that one of its commands may take."""


async def create(
    loop: Loop, reaper: Reaper, defaults: Defaults, request: Any, publish: Publish
) -> Container:
    """Makes a container from a CreateTaskRequest (v2 or v3).

    Raises InvalidArgument, FailedPrecondition (systemd is asked for and not there), Unknown (the
    runtime's words); nothing is left then."""
    check_identifier(request.id, "id")
    options = decode_options(request.options)
    bundle = Bundle(request.bundle.rstrip("/"))
    if not os.access(f"{bundle.path}/config.json", os.R_OK):
        raise InvalidArgument(f"bundle: {request.bundle!r} has no config.json")
    if options.systemd_cgroup:
        require_systemd(bundle)

    def runtime_by(binary: str) -> Runtime:
        root = f"{options.root or defaults.runtime_root}/{defaults.namespace}"
        by_systemd = options.systemd_cgroup
        return Runtime(loop, reaper, binary, root, bundle.path, by_systemd, defaults.seconds)

    runtime = runtime_by(options.binary_name or defaults.runtime)
    if request.checkpoint and not options.binary_name:
        runtime = runtime_by(await criu.able(runtime))
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
    container.exec_by_hand = defaults.exec_by_hand
    if options.shim_cgroup:
        join_cgroup(options.shim_cgroup)
    if request.checkpoint:
        container.restore = Restore(
            request.checkpoint,
            request.parent_checkpoint,
            options.criu_work_path or f"{bundle.path}/criu-work",
            options.no_pivot_root,
        )
    try:
        await _run(container, options, request.rootfs)
    except BaseException:
        stdio.close()
        raise
    return container


async def _run(container: Container, options: options_pb2.Options, rootfs: Any) -> None:
    """What the runtime does, and what surrounds it."""
    runtime, init = container.runtime, container.init
    if container.restore is not None:
        notes = _notes(container)
        await runtime.apart(
            lambda runtime: _prepare(container.bundle, runtime, rootfs, notes), "create"
        )
        return
    with container.reaper.early:
        if not init.wishes.terminal:
            streams = await init.stdio.open(container.id, container.namespace, *container.owner)
            notes = _notes(container)
            plan = Plan(container.id, container.bundle, rootfs, options, notes, streams)
            facts = await runtime.apart(plan.carry_out, "create")
            init.stdio.given()
            await _accept(container, plan, facts)
            return
        with ConsoleSocket(container.bundle.path, "init.pty") as console:
            plan = Plan(
                container.id,
                container.bundle,
                rootfs,
                options,
                _notes(container),
                None,
                console=console.path,
            )
            facts = await runtime.apart(plan.carry_out, "create")
            try:
                master = await console.master(container.loop)
                await init.stdio.attach(master, container.id, container.namespace)
            except BaseException:
                await plan.take_back(runtime)
                raise
        await _accept(container, plan, facts)


async def _accept(container: Container, plan: Plan, facts: dict[str, Any]) -> None:
    try:
        container.reaper.check(facts["pid"], child=True)
    except Error:
        await plan.take_back(container.runtime)
        raise
    container.created(facts)


def _notes(container: Container) -> str:
    """What a shim that takes over has to know, as the inside of a JSON object."""
    uid, gid = container.owner
    return f'"owner": [{uid}, {gid}], {describe(container.init.wishes, container.init.stdio)}'


async def _prepare(bundle: Bundle, runtime: Runtime, rootfs: Any, notes: str) -> None:
    bundle.prepare(runtime.binary, runtime.root, runtime.systemd_cgroup, notes)
    bundle.mount(rootfs)


@dataclass(frozen=True, slots=True)
class Plan:
    """The part of a create that runs in a fork: each step undone if a later one fails."""

    id: str
    bundle: Bundle
    rootfs: Any
    options: options_pb2.Options
    notes: str
    streams: Streams | None
    console: str = ""

    async def carry_out(self, runtime: Runtime) -> dict[str, Any]:
        """Mounts, creates, and answers the facts of ``container.Facts``."""
        await _prepare(self.bundle, runtime, self.rootfs, self.notes)
        state = f"{runtime.root}/{self.id}"
        foreign = os.access(state, os.F_OK)  # somebody else's, which no undo may touch
        try:
            pid = await runtime.create(
                self.id,
                self.bundle.init_pid_file,
                self.streams,
                console=self.console,
                no_pivot=self.options.no_pivot_root,
                no_new_keyring=self.options.no_new_keyring,
            )
            return observe(pid)
        except BaseException as error:
            if foreign or (isinstance(error, RuntimeFailure) and not os.access(state, os.F_OK)):
                _undone(self.bundle.unmount)
            else:  # it was stopped halfway, or did more than it told
                await self.take_back(runtime)
            raise

    async def take_back(self, runtime: Runtime) -> None:
        """Undoes it."""
        try:
            await runtime.delete(self.id, force=True)
        except Error as error:
            log.error("a failed create left a container", id=self.id, error=error)
        _undone(self.bundle.unmount)


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


def require_systemd(bundle: Bundle) -> None:
    """Raises FailedPrecondition where systemd does not run, InvalidArgument where the spec asks
    for a group that it does not make."""
    if not systemd.is_running():
        raise FailedPrecondition(
            "options: systemd_cgroup needs systemd, which is not running on this host"
        )
    import json  # large, and rarely needed

    try:
        linux = json.loads(read(f"{bundle.path}/config.json")).get("linux") or {}
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"spec: is not a JSON object: {error}") from error
    except RecursionError as error:
        raise InvalidArgument("spec: must not be nested so deeply") from error
    path = linux.get("cgroupsPath")
    if path:
        systemd.group_of(str(path))


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
