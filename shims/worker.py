"""The shim process: what a fresh fork of the zygote runs as a container's supervisor.

``main`` never returns normally: the process ends by ``os._exit``, without the interpreter's
teardown, which would touch all the pages it shares.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH108
from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from supervisord.linux import process as process_calls

from . import ahead, log
from .create import Defaults, carry_out
from .loop import Loop
from .publisher import Publisher
from .reaper import Reaper, catch_signal
from .rpc import Late, Method, Methods, Server
from .runtime import COMMAND_SECONDS
from .service import ABANDONABLE, METHODS, TaskService

_SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
_IDLE_SECONDS = 60.0
"""A shim that was made and never used ends after this time: its daemon died meanwhile. So does
one whose container has ended when its socket or its bundle is gone: nobody can ever ask for it."""


def settle() -> None:
    """What holds for all shims, done once in the zygote: a container must not lose its supervisor
    to a signal meant for the daemon, and exits of children wake it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    catch_signal()


class Beginning(NamedTuple):
    """What a shim has before it knows whose it is."""

    loop: Loop
    reaper: Reaper
    ahead: ahead.Ahead | None


def begin() -> Beginning:
    """All that a spare can do before its request: it has the time."""
    process_calls.set_subreaper()
    loop = Loop()
    return Beginning(loop, Reaper(loop), ahead.make(carry_out))


def main(
    arguments: Mapping[str, object], fds: Sequence[int], begun: Beginning | None = None
) -> None:
    """``begun`` is what ``begin`` has made in this process, if it has. ``fds``: the listening
    socket and the log file. ``arguments``: ``namespace``, ``id``, ``publish`` (the daemon's
    ttrpc socket, "" for none), ``publish_prompt`` (see ``Publisher``), ``runtime``,
    ``runtime_root``, ``runtime_seconds`` (the longest that one of its commands may take),
    ``log_level``, ``exec_by_hand`` (false to leave all execs to the runtime), ``address`` with
    ``unlink`` true where the shim owns its socket's file, ``idle_seconds`` between two looks at
    whether anybody still wants this shim, and ``sched_core`` true where it is to have processor
    cores to itself. One that is to take over a container has ``adopt``, the ``pid`` and ``start``
    time of its init, and a pidfd of it as third descriptor."""
    listener, log_file, *pidfds = fds
    os.dup2(log_file, 2, inheritable=True)
    os.close(log_file)
    log.set_level(str(arguments.get("log_level") or "info"))
    if begun is None:
        process_calls.set_subreaper()
        loop = Loop()
        begun = Beginning(loop, Reaper(loop), None)
    loop, reaper, helper = begun
    if arguments.get("sched_core"):
        process_calls.schedule_apart()
    if helper is not None and (arguments.get("sched_core") or arguments.get("adopt")):
        helper.let_go()  # it would not be apart; there is nothing for it to do
        helper = None
    namespace = str(arguments["namespace"])
    publisher = Publisher(
        loop,
        str(arguments.get("publish") or ""),
        namespace,
        prompt=bool(arguments.get("publish_prompt")),
    )
    defaults = Defaults(
        namespace,
        str(arguments["runtime"]),
        str(arguments["runtime_root"]),
        bool(arguments.get("exec_by_hand", True)),
        float(arguments.get("runtime_seconds") or COMMAND_SECONDS),  # type: ignore[arg-type]
    )

    def end() -> None:
        loop.soon(lambda: loop.soon(loop.stop))

    service = TaskService(loop, reaper, publisher, defaults, end, helper)
    wanted: Any = arguments.get("adopt")
    if wanted:
        _adopt(loop, service, arguments, wanted, pidfds[0])
    server = Server(
        loop,
        listener,
        METHODS,
        service,
        abandonable=ABANDONABLE,
        late=_sandbox_methods(loop, service, end),
        on_connect=publisher.poke,
    )
    _watch_idleness(
        loop,
        service,
        server,
        str(arguments["address"]).removeprefix("unix://"),
        float(arguments.get("idle_seconds") or _IDLE_SECONDS),  # type: ignore[arg-type]
    )
    log.debug("shim serves", id=arguments.get("id"), pid=os.getpid())
    loop.run()
    if arguments.get("unlink"):  # first: another shim may take the same address
        _unlink(str(arguments["address"]))
    _last_events(loop, publisher)
    server.close()
    log.debug("shim ends", id=arguments.get("id"))


def _sandbox_methods(loop: Loop, service: TaskService, end: Callable[[], None]) -> Late:
    """Finds the methods of the sandbox service, which are imported when the first is asked for."""
    made: list[Methods] = []

    def find(name: str, method: str) -> Method | None:
        if name != _SANDBOX:
            return None
        if not made:
            from .sandbox import methods

            made.append(methods(loop, service, end))
        return made[0].get((name, method))

    return find


def _adopt(
    loop: Loop, service: TaskService, arguments: Mapping[str, object], wanted: Any, pidfd: int
) -> None:
    from .adopt import Orphan

    orphan = Orphan(
        str(arguments["id"]), str(arguments["bundle"]), wanted["pid"], wanted["start"], pidfd
    )
    loop.run_until(loop.spawn(service.adopt(orphan), "adoption"))


def _watch_idleness(
    loop: Loop, service: TaskService, server: Server, address: str, seconds: float
) -> None:
    looks = False  # while somebody is connected there is nothing to look for, and no timer

    def lonely() -> None:
        nonlocal looks
        if not looks:
            looks = True
            loop.later(seconds, look)

    def look() -> None:
        nonlocal looks
        looks = False
        if server.peers:
            return
        if service.idle:
            log.info("nobody wants this shim, it ends")
            loop.stop()
        elif service.over and not (os.access(address, os.F_OK) and service.has_bundle):
            log.warning("nobody can ask for this shim's container, which has ended")
            loop.spawn(service.abandon(), "abandon").when_done(loop.stop)
        else:
            lonely()

    server.on_lonely = lonely
    lonely()


def _last_events(loop: Loop, publisher: Publisher) -> None:
    """Gives the daemon a moment to take what it has not taken yet."""
    over: list[bool] = []
    loop.later(2.0, lambda: over.append(True))
    while publisher.pending and not over:
        loop.turn()


def _unlink(address: str) -> None:
    try:
        os.unlink(address.removeprefix("unix://"))
    except FileNotFoundError:
        return
