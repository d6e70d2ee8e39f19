"""Checkpoints: freezing a container into files, and starting one from them.

Both are the runtime's work, done by CRIU; where that cannot work, the request is refused.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH103, PTH104
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.errors import Error, InvalidArgument, Unknown

from . import criu, log, running
from .console import ConsoleSocket
from .machine import Event

if TYPE_CHECKING:
    from .command import Streams
    from .container import Container
    from .runtime import Runtime


_CGROUPS_MODES = ("soft", "full", "strict", "ignore")


@dataclass(frozen=True, slots=True)
class Restore:
    """How ``start`` restores a container that was created from a checkpoint."""

    image: str
    parent: str
    work: str
    no_pivot: bool

    def options(self) -> Sequence[str]:
        options = ["--image-path", self.image, "--work-path", self.work, "--no-subreaper"]
        if self.parent:
            options += ["--parent-path", self.parent]
        if self.no_pivot:
            options.append("--no-pivot")
        return options

    async def run(self, container: Container) -> None:
        """Restores; init has its pid afterwards. After a failure it may be tried again.

        Raises FailedPrecondition, Unknown."""
        await criu.require(container.runtime)
        try:
            await self._run(container)
        except BaseException:
            container.init.stdio.close()
            await _take_back(container)
            raise
        init = container.init
        running.write(container.bundle.path, "", init.pid, init.wishes, init.stdio)

    async def _run(self, container: Container) -> None:
        init, runtime = container.init, container.runtime
        os.makedirs(self.work, 0o711, exist_ok=True)
        pid_file = container.bundle.init_pid_file
        with container.reaper.early:
            if init.wishes.terminal:
                with ConsoleSocket(container.bundle.path, "init.pty") as console:
                    path = console.path
                    facts = await runtime.apart(
                        lambda runtime: self._restore(container.id, runtime, pid_file, None, path),
                        "restore",
                    )
                    master = await console.master(container.loop)
                await init.stdio.attach(master, container.id, container.namespace)
            else:
                streams = await init.stdio.open(container.id, container.namespace, *container.owner)
                facts = await runtime.apart(
                    lambda runtime: self._restore(container.id, runtime, pid_file, streams),
                    "restore",
                )
                init.stdio.given()
            container.created(facts)

    async def _restore(
        self,
        id: str,
        runtime: Runtime,
        pid_file: str,
        streams: Streams | None,
        console: str = "",
    ) -> dict[str, Any]:
        from .container import observe

        pid = await runtime.restore(id, self.options(), pid_file, streams, console=console)
        return observe(pid)


async def _take_back(container: Container) -> None:
    """What a runtime has made that nobody could talk to, or that it failed over, goes again."""
    if not container.runtime.holds(container.id):
        return
    try:
        await container.runtime.delete(container.id, force=True)
    except Error as error:
        log.error("a failed restore left a container", id=container.id, error=error)


async def checkpoint(
    container: Container, path: str, options: options_pb2.CheckpointOptions
) -> None:
    """Writes a checkpoint of a container to the folder ``path``.

    Raises InvalidArgument, FailedPrecondition (no CRIU here, wrong state), Unknown."""
    mode = options.cgroups_mode
    if mode and mode not in _CGROUPS_MODES:
        raise InvalidArgument(
            f"options: cgroups_mode must be one of {', '.join(_CGROUPS_MODES)}, not {mode!r}"
        )
    async with container.init.lock:
        container.init.machine.feed(Event.CHECKPOINT)
        await criu.require(container.runtime)
        work = options.work_path or f"{container.bundle.path}/criu-work"
        os.makedirs(work, 0o711, exist_ok=True)
        arguments = ["--image-path", path, "--work-path", work]
        for flag, wanted in (
            ("--leave-running", not options.exit),
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
        ):
            if wanted:
                arguments.append(flag)
        for name in options.empty_namespaces:
            arguments += ["--empty-ns", name]
        if mode:
            arguments += ["--manage-cgroups-mode", mode]
        if options.parent_path:
            arguments += ["--parent-path", options.parent_path]
        try:
            await container.runtime.checkpoint(container.id, arguments)
        except Error as error:
            kept = f"{container.bundle.path}/criu-dump.log"
            try:
                os.rename(f"{work}/dump.log", kept)
            except OSError as missing:
                log.debug("CRIU left no log", error=missing)
            first = error.message.partition("\n")[0]
            raise Unknown(f"{first} path= {kept}") from error
        finally:
            if not options.work_path:
                import shutil  # large, and rarely needed

                shutil.rmtree(work, ignore_errors=True)
