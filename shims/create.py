"""Creates a container: options, rootfs, streams, runtime; each step undone if a later one fails."""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH110, PTH112, PTH208
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.task.v3 import shim_pb2 as v3
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

if TYPE_CHECKING:
    from .ahead import Ahead


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
    loop: Loop,
    reaper: Reaper,
    defaults: Defaults,
    request: Any,
    publish: Publish,
    ahead: Ahead | None = None,
) -> Container:
    """Makes a container from a CreateTaskRequest (v2 or v3), with ``ahead`` where it serves.

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
    container.on_overlay = [mount.type for mount in request.rootfs] == ["overlay"]
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
        await _run(container, options, request, ahead)
    except BaseException:
        stdio.close()
        raise
    finally:
        if ahead is not None:
            ahead.let_go()
    return container


async def _run(
    container: Container, options: options_pb2.Options, request: Any, ahead: Ahead | None
) -> None:
    """What the runtime does, and what surrounds it."""
    runtime, init, rootfs = container.runtime, container.init, request.rootfs
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
            facts = await _carried_out(runtime, plan, request, ahead)
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
            facts = await _carried_out(runtime, plan, request, ahead)
            try:
                master = await console.master(container.loop)
                await init.stdio.attach(master, container.id, container.namespace)
            except BaseException:
                await plan.take_back(runtime)
                raise
        await _accept(container, plan, facts)


async def _carried_out(
    runtime: Runtime, plan: Plan, request: Any, ahead: Ahead | None
) -> dict[str, Any]:
    """The facts of the container that a plan has made, in the fork that waits or a new one."""
    # The one that waits did not come along when the shim joined a group.
    if ahead is not None and not plan.options.shim_cgroup:
        head, fds = plan.order(runtime)
        if ahead.order(head, request.SerializeToString(), fds):
            return await ahead.result(runtime.loop, runtime.apart_seconds, "create")  # type: ignore[no-any-return]
    return await runtime.apart(plan.carry_out, "create")  # type: ignore[no-any-return]


async def carry_out(
    loop: Loop, reaper: Reaper, order: Any, request: bytes, fds: Sequence[int]
) -> dict[str, Any]:
    """A plan that was handed to a fork which had been made before (``ahead.Serve``)."""
    os.dup2(fds[0], 2, inheritable=True)
    log.set_least(order["least"])
    asked = v3.CreateTaskRequest.FromString(request)
    bundle = Bundle(order["bundle"])
    runtime = Runtime(
        loop,
        reaper,
        order["binary"],
        order["root"],
        bundle.path,
        order["systemd"],
        order["seconds"],
    )
    streams = None
    if order["streams"]:
        given = iter(fds[1:])
        streams = Streams(*[next(given) if there else -1 for there in order["streams"]])
    options = decode_options(asked.options)
    plan = Plan(
        asked.id, bundle, asked.rootfs, options, order["notes"], streams, console=order["console"]
    )
    return await plan.carry_out(runtime)


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

    def order(self, runtime: Runtime) -> tuple[str, list[int]]:
        """What ``carry_out`` of the module takes, besides the request, and the descriptors."""
        fds = [2]
        there = ""
        if self.streams is not None:
            given = (self.streams.stdin, self.streams.stdout, self.streams.stderr)
            fds += [fd for fd in given if fd >= 0]
            there = ", ".join("0" if fd < 0 else "1" for fd in given)
        head = (
            f'{{"least": {log.least()}, "bundle": {_quoted(self.bundle.path)}, '
            f'"binary": {_quoted(runtime.binary)}, "root": {_quoted(runtime.root)}, '
            f'"systemd": {"true" if runtime.systemd_cgroup else "false"}, '
            f'"seconds": {runtime.seconds}, "notes": {_quoted(self.notes)}, '
            f'"streams": [{there}], "console": {_quoted(self.console)}}}'
        )
        return head, fds

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
