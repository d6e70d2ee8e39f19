"""Ends shims, and removes what is left of a container whose shim is dead.

The OCI runtime is asked to delete the container by force: it kills what is still alive after
making sure that a pid is really the container's. A container of which init is still alive
afterwards is not buried; the caller tries again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import DecodeError

from protos.containerd.task.v3 import shim_pb2
from supervisord.aio import command
from supervisord.contracts.errors import Error, NotFound, Unavailable
from supervisord.contracts.tasks import Exit
from supervisord.linux import cgroups, process

from .bundle import Bundle, BundleStore, ShimRecord
from .foreign import ForeignLauncher
from .shim import Shim, nanoseconds
from .task import KILLED, Ended, killed

log = logging.getLogger(__name__)

_DELETE_SECONDS = 20.0
_GONE_SECONDS = 5.0
_END_SECONDS = 5.0


class Burial:
    """The undertaker of one state folder."""

    def __init__(self, store: BundleStore, foreign: ForeignLauncher) -> None:
        self._store = store
        self._foreign = foreign

    async def end_shim(self, shim: Shim | None, record: ShimRecord, *, last: bool = True) -> None:
        """Has a shim without a container end, by force where it does not; removes its socket. One
        that holds others, because this was not its ``last``, is only let go of."""
        if not last:
            if shim is not None:
                shim.close()
            return
        if shim is not None:
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await shim.shutdown()
                    await shim.closed
            except (Error, TimeoutError) as error:
                log.debug("shim %s does not end by itself: %s", record.pid, error)
            shim.close()
        if process.alive(record.pid, record.start_time):
            await self._kill_shim(record)
        if record.address.startswith("/"):  # none yet, or abstract
            Path(record.address).unlink(missing_ok=True)

    async def _kill_shim(self, record: ShimRecord) -> None:
        for _ in range(20):  # it may be on its way out
            await asyncio.sleep(0.01)
            if not process.alive(record.pid, record.start_time):
                return
        try:
            pidfd = process.pidfd_open(record.pid)
        except ProcessLookupError:
            return
        try:
            if process.alive(record.pid, record.start_time):
                process.pidfd_send_signal(pidfd, signal.SIGKILL)
                log.warning("shim %s was killed: it did not end", record.pid)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    async def end_foreign(
        self, shim: Shim, bundle: Bundle, record: ShimRecord, *, last: bool
    ) -> None:
        """What follows the deletion of a foreign shim's container, while the bundle is there: its
        program cleans up as well, for all that the shim itself does not."""
        await self.end_shim(shim, record, last=last)
        await self._delete_by_shim(bundle, record)

    async def empty(self, trash: str) -> None:
        """Removes a discarded bundle for good; a failure is logged, and the next start of the
        daemon tries again."""
        if not trash:
            return
        try:
            await asyncio.to_thread(self._store.empty, trash)
        except Error as error:
            log.warning("bundle not removed: %s", error)

    async def bury(self, bundle: Bundle, record: ShimRecord, seen: Exit | None = None) -> Ended:
        """Kills and deletes what the dead shim's container left, and tells how it ended:
        ``seen`` is what the kernel says of an init that had ended before. The bundle stays;
        discard it. Raises Unavailable while init is still alive."""
        told: Exit | None = None
        if record.binary:
            told = await self._delete_by_shim(bundle, record)
        else:
            await self.end_commands(bundle)
            group = _group(record)
            await self._delete_by_runtime(bundle)
            if group is not None:
                await self._end_by_hand(record, group)
        known = record if record.init_pid else await asyncio.to_thread(_half_made, bundle, record)
        await self._until_gone(known)
        written = bundle.read_exit("")
        init = told or seen or killed(record)
        if written is not None:
            init = Exit("", written.pid, written.exit_status, written.exited_at)
        execs = {
            id: Exit(id, pid, KILLED, init.exited_at) for id, pid in bundle.read_running().items()
        }
        return Ended(init, {**execs, **_execs(bundle)})

    async def _delete_by_runtime(self, bundle: Bundle) -> None:
        found = bundle.read_runtime()
        if found is None:
            return
        binary, root = found
        argv = [binary, "--root", root, "delete", "--force", bundle.id]
        try:
            result = await command.run(argv, seconds=_DELETE_SECONDS)
        except Error as error:
            log.warning("container %s: %s", bundle.id, error)
            return
        if result.status and b"does not exist" not in result.stderr:
            log.warning("container %s: runtime delete: %s", bundle.id, result.last_words)

    async def _delete_by_shim(self, bundle: Bundle, record: ShimRecord) -> Exit | None:
        try:
            result = await self._foreign.run(record.binary, bundle, "delete", b"", _DELETE_SECONDS)
            answer = shim_pb2.DeleteResponse.FromString(result.stdout)
        except NotFound as error:
            log.warning("container %s: %s", bundle.id, error)
            return None
        except (Error, DecodeError) as error:
            log.warning("container %s: shim delete: %s", bundle.id, error)
            return None
        at = nanoseconds(answer.exited_at) or time.time_ns()
        return Exit("", answer.pid or record.init_pid, answer.exit_status, at)

    async def end_commands(self, bundle: Bundle) -> None:
        """Ends what the dead shim had begun: commands of the runtime that work on this bundle and
        would make a container, or a process in it, that nobody knows. Nothing else, however it
        mentions the bundle."""
        found = bundle.read_runtime()
        if found is None:  # noted before the first command
            return
        for pid in await asyncio.to_thread(_end_commands, found[1], bundle.path):
            log.warning("container %s: command %s of its dead shim was ended", bundle.id, pid)

    async def _end_by_hand(self, record: ShimRecord, group: cgroups.Cgroup) -> None:
        """Where the runtime does not know the container any more: kills all that is in its
        control group, and removes that."""
        if not process.alive(record.init_pid, record.init_start):
            return
        log.warning("process %s is unknown to its runtime, ending it", record.init_pid)
        for pid in await asyncio.to_thread(cgroups.pids, group):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._until_gone(record)
        await asyncio.to_thread(_remove_group, group)

    async def _until_gone(self, record: ShimRecord) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        while process.alive(record.init_pid, record.init_start):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"process {record.init_pid} outlives its shim and cannot be ended"
                )
            await asyncio.sleep(0.02)


def _half_made(bundle: Bundle, record: ShimRecord) -> ShimRecord:
    """With the init that the runtime has told of, but nobody yet has noted."""
    pid, started = bundle.read_init()
    return replace(record, init_pid=pid, init_start=started)


def _end_commands(root: str, path: str) -> list[int]:
    """Kills the commands of a dead shim, and what they have forked; answers their pids.

    They are known by the flags that shims alone call a runtime with: its state folder, and then a
    log in the bundle. The executable tells less: a runtime may be a script, may execute another
    one, or a copy of itself. Whoever has given those flags by hand is not an orphan."""
    sign = b"\0--root\0%b\0--log\0%b/log-" % (os.fsencode(root), os.fsencode(path))
    found: dict[int, tuple[int, int]] = {}
    with ExitStack() as opened:
        for name in os.listdir("/proc"):  # noqa: PTH208
            if not name.isdigit():
                continue
            try:
                if sign in Path("/proc", name, "cmdline").read_bytes():
                    pidfd = process.pidfd_open(int(name))
                    opened.callback(os.close, pidfd)
                    if sign in Path("/proc", name, "cmdline").read_bytes():
                        found[int(name)] = process.parent(int(name)), pidfd
            except OSError:
                continue
        adopters = _adopters()
        ended = [pid for pid in found if _first_parent(pid, found) in adopters]
        for pid in ended:
            with suppress(ProcessLookupError):
                process.pidfd_send_signal(found[pid][1], signal.SIGKILL)
    return ended


def _first_parent(pid: int, found: Mapping[int, tuple[int, int]]) -> int:
    """Who is the parent of a process and of those of its ancestors that were found."""
    while pid in found:
        pid = found[pid][0]
    return pid


def _adopters() -> set[int]:
    """Who may become the parent of a dead shim's children: init, or a subreaper above us (0 is one
    that is not in our pid namespace)."""
    adopters, pid = {0, 1}, os.getppid()
    while pid not in adopters:
        adopters.add(pid)
        try:
            pid = process.parent(pid)
        except OSError:
            break
    return adopters


def _group(record: ShimRecord) -> cgroups.Cgroup | None:
    """The control group of a living init; None where it has none of its own."""
    try:
        group = cgroups.of_pid(record.init_pid)
        own = cgroups.of_pid(os.getpid())
    except NotFound:
        return None
    if not process.alive(record.init_pid, record.init_start):
        return None
    paths = {name: path for name, path in group.paths.items() if path not in ("/", "")}
    shared = any(path == own.paths.get(name) for name, path in paths.items())
    return None if shared or not paths else cgroups.Cgroup(group.root, group.unified, paths)


def _remove_group(group: cgroups.Cgroup) -> None:
    for controller in group.paths:
        with suppress(OSError):  # it has groups below it: they are not ours
            Path(group.folder(controller)).rmdir()


def _execs(bundle: Bundle) -> dict[str, Exit]:
    """The exits that were written down, by exec id."""
    found: dict[str, Exit] = {}
    try:
        names = [path.stem for path in Path(bundle.path, "exits").glob("*.json")]
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("container %s: exits: %s", bundle.id, error)
        return found
    for name in names:
        exec_id = "init" if name == "init_" else name
        record = bundle.read_exit(exec_id)
        if name != "init" and record is not None:
            found[exec_id] = Exit(exec_id, record.pid, record.exit_status, record.exited_at)
    return found
