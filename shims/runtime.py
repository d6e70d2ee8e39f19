"""The OCI runtime of one container: runc, crun, or whatever takes the same command line.

Every command writes its log as JSON lines to a file of its own; when it fails, the last error
line becomes the message. No state is kept here; ``container`` decides what is run when.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from supervisord.contracts.errors import NotFound, Unknown

from . import sheltered
from .apart import apart
from .bundle import read, remove
from .command import Streams, finish, spawn
from .loop import Loop
from .reaper import Reaper

COMMAND_SECONDS = 120.0
"""After this time a runtime command counts as stuck, and is killed with all that it started."""

_BRIEF_SECONDS = 40.0
"""The same for commands that start nothing: the daemon waits a minute for what they are part of."""

_UNDO_SECONDS = 15.0
_TAIL = 4096


RuntimeWork = Callable[["Runtime"], Coroutine[Any, Any, Any]]


class RuntimeFailure(Unknown):
    """The runtime refused; ``reason`` is what it said."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Runtime:
    """How to call the runtime. ``root`` is its state folder, ``bundle`` takes its logs
    (a bundle that somebody has removed does not)."""

    loop: Loop
    reaper: Reaper
    binary: str
    root: str
    bundle: str
    systemd_cgroup: bool = False
    seconds: float = COMMAND_SECONDS
    """The longest that a command may take."""

    @property
    def name(self) -> str:
        """The binary's name: ``runc`` and ``crun`` are known closely enough to be spared."""
        return self.binary.rpartition("/")[2]

    @property
    def plain_processes(self) -> bool:
        """Whether a container's init is an ordinary process that a signal reaches directly.
        Sandboxed runtimes have a stand-in there."""
        return self.name in ("runc", "crun", "youki")

    async def apart(self, work: RuntimeWork, what: str) -> Any:
        """Calls the runtime from a fork of this process. ``work`` gets the runtime of the fork;
        it answers plain JSON. Raises what it raises."""

        def run(loop: Loop, reaper: Reaper) -> Coroutine[Any, Any, Any]:
            return work(
                Runtime(
                    loop,
                    reaper,
                    self.binary,
                    self.root,
                    self.bundle,
                    self.systemd_cgroup,
                    self.seconds,
                )
            )

        return await apart(self.loop, self.reaper, run, self.apart_seconds, what)

    @property
    def apart_seconds(self) -> float:
        """The longest that a fork may take: it keeps the deadlines itself, of a command and of
        one that undoes it."""
        return 2 * self.seconds + _UNDO_SECONDS

    async def create(
        self,
        id: str,
        pid_file: str,
        streams: Streams | None,
        *,
        console: str = "",
        no_pivot: bool = False,
        no_new_keyring: bool = False,
    ) -> int:
        """Creates the container and answers the pid of its init. Raises RuntimeFailure."""
        options = ["--bundle", self.bundle, "--pid-file", pid_file]
        if console:
            options += ["--console-socket", console]
        if no_pivot:
            options.append("--no-pivot")
        if no_new_keyring:
            options.append("--no-new-keyring")
        await self.run(["create", *options, id], "OCI runtime create failed", streams)
        return read_pid(pid_file)

    async def start(self, id: str) -> None:
        await self.run(["start", id], "OCI runtime start failed")

    async def exec(
        self, id: str, process: str, pid_file: str, streams: Streams | None, *, console: str = ""
    ) -> int:
        """Runs the process described in the file ``process``, and answers its pid."""
        options = ["--process", process, "--detach", "--pid-file", pid_file]
        if console:
            options += ["--console-socket", console]
        await self.run(["exec", *options, id], "OCI runtime exec failed", streams)
        return read_pid(pid_file)

    async def delete(self, id: str, *, force: bool = False) -> None:
        """Removes what the runtime holds of the container; nothing to do where it is gone."""
        arguments = ["delete", "--force", id] if force else ["delete", id]
        try:
            await self.run(arguments, "failed to delete task", seconds=_BRIEF_SECONDS)
        except RuntimeFailure as error:
            if "does not exist" not in error.reason and self.holds(id):
                raise

    def holds(self, id: str) -> bool:
        """Whether the runtime has anything of the container in its state folder, as far as that
        is known."""
        return not self.plain_processes or os.access(f"{self.root}/{id}", os.F_OK)

    async def kill(self, id: str, signal: int, *, all: bool) -> None:
        arguments = ["kill", *(["--all"] if all else []), id, str(signal)]
        await self.run(arguments, "OCI runtime kill failed", seconds=_BRIEF_SECONDS)

    async def state(self, id: str) -> dict[str, Any]:
        """What the runtime knows of a container: at least ``status`` and ``pid``. Raises
        RuntimeFailure."""
        what = "OCI runtime state failed"
        answer = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            await self.run(["state", id], what, Streams(stdout=answer))
            state = json.loads(os.pread(answer, os.fstat(answer).st_size, 0))
        except ValueError as error:
            raise RuntimeFailure(what, str(error)) from error
        finally:
            os.close(answer)
        if not isinstance(state, dict):
            raise RuntimeFailure(what, "the answer is no JSON object")
        return state

    async def pause(self, id: str) -> None:
        await self.run(["pause", id], "OCI runtime pause failed", seconds=_BRIEF_SECONDS)

    async def resume(self, id: str) -> None:
        await self.run(["resume", id], "OCI runtime resume failed", seconds=_BRIEF_SECONDS)

    async def update(self, id: str, resources: str) -> None:
        """Applies the LinuxResources (JSON) in the file ``resources``."""
        arguments = ["update", "--resources", resources, id]
        await self.run(arguments, "OCI runtime update failed", seconds=_BRIEF_SECONDS)

    async def pids(self, id: str) -> list[int]:
        """The processes of the container as the runtime numbers them: those of a sandbox have
        numbers of their own. Raises RuntimeFailure, Unknown."""
        out = os.memfd_create("pids", os.MFD_CLOEXEC)
        try:
            await self.run(
                ["ps", "--format", "json", id], "OCI runtime ps failed", Streams(stdout=out)
            )
            found = json.loads(os.pread(out, os.fstat(out).st_size, 0))
            return [int(pid) for pid in found]
        except (ValueError, TypeError) as error:
            raise Unknown(f"OCI runtime ps: no list of pids: {error}") from error
        finally:
            os.close(out)

    async def checkpoint(self, id: str, options: Sequence[str]) -> None:
        await self.run(["checkpoint", *options, id], "OCI runtime checkpoint failed")

    async def restore(
        self,
        id: str,
        options: Sequence[str],
        pid_file: str,
        streams: Streams | None,
        *,
        console: str = "",
    ) -> int:
        """Restores the container from a checkpoint and answers the pid of its init."""
        arguments = ["restore", "--bundle", self.bundle, "--detach", "--pid-file", pid_file]
        if console:
            arguments += ["--console-socket", console]
        arguments += [*options, id]
        await self.run(arguments, "OCI runtime restore failed", streams)
        return read_pid(pid_file)

    async def run(
        self,
        arguments: Sequence[str],
        what: str,
        streams: Streams | None = None,
        *,
        seconds: float = COMMAND_SECONDS,
    ) -> None:
        """Runs one command to its end. Raises RuntimeFailure, DeadlineExceeded."""
        folder = self.bundle if os.access(self.bundle, os.F_OK) else self.root
        log_file = f"{folder}/log-{os.getpid()}.json"
        # The container inherits its streams from the command; others get a scratch file.
        scratch = -1
        if streams is None:
            scratch = os.memfd_create("stderr", os.MFD_CLOEXEC)
            streams = Streams(stderr=scratch)
        try:
            command = [self.binary, "--root", self.root, "--log", log_file, "--log-format", "json"]
            if self.systemd_cgroup:
                command.append("--systemd-cgroup")
            try:
                pid = self._spawn([*command, *arguments], streams)
            except NotFound as error:
                raise RuntimeFailure(what, error.message) from error
            limit = min(seconds, self.seconds)
            name = f"{what}: {self.binary} {arguments[0]}"
            exit = await finish(self.loop, self.reaper, pid, limit, name)
            if exit.status != 0:
                reason = last_error(log_file) or _tail(scratch) or _how(exit.status)
                raise RuntimeFailure(what, reason)
        finally:
            if scratch >= 0:
                os.close(scratch)
            remove(log_file)

    def _spawn(self, command: Sequence[str], streams: Streams) -> int:
        """Raises NotFound, Unknown."""
        fd = sheltered.open(self.binary) if self.name == "crun" else -1
        if fd < 0:
            return spawn(command, streams)
        try:
            return spawn(command, streams, program=f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def _how(status: int) -> str:
    """How a command ended that said nothing."""
    return f"killed by signal {status - 128}" if status > 128 else f"exit status {status}"


def read_pid(path: str) -> int:
    """The pid that the runtime wrote. Raises Unknown."""
    try:
        pid = int(read(path))
    except (OSError, ValueError) as error:
        raise Unknown(f"failed to retrieve OCI runtime container pid: {error}") from error
    if pid < 2:  # it is going to be signalled: these would reach others
        raise Unknown(f"failed to retrieve OCI runtime container pid: {pid} is none")
    return pid


def last_error(path: str) -> str:
    """The message of the last error line in a runtime's JSON log; "" without one."""
    try:
        lines = read(path).splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            return str(entry.get("msg", "")).strip()
    return ""


def _tail(fd: int) -> str:
    if fd < 0:
        return ""
    size = os.fstat(fd).st_size
    return os.pread(fd, _TAIL, max(0, size - _TAIL)).decode(errors="replace").strip()
