"""Runs one program to its end, without a thread and without copying this process.

posix_spawn shares our memory with the child until it executes, so spawning costs the same
however large the interpreter is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supervisord.contracts.errors import DeadlineExceeded, NotFound, Unknown

from .loop import Loop
from .reaper import Exit, Reaper

# The shim ignores or handles these, or a shell that started the daemon in the background had them
# ignored; what it starts must not inherit that. Plain numbers, because the enumeration's methods
# are Python code.
DEFAULT_SIGNALS = tuple(
    int(number)
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGCHLD,
        signal.SIGQUIT,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    )
)
_SIGKILL = int(signal.SIGKILL)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": os.environ.get("PATH", PATH)}
"""All that a program gets of the daemon's environment."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors for a child's standard streams; -1 is /dev/null."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


def spawn(
    arguments: Sequence[str],
    streams: Streams,
    *,
    environment: Mapping[str, str] | None = None,
    extra: Sequence[int] = (),
    program: str = "",
) -> int:
    """Starts a program (looked up in PATH) and answers its pid. It leads a process group of its
    own. ``extra`` descriptors become 3, 4, ... of the child; ``program`` is executed where the
    first argument only names it. Raises NotFound (no such program), Unknown."""
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for number, fd in enumerate((streams.stdin, streams.stdout, streams.stderr)):
        if fd < 0:
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY
            actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", flags, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
    # Moved out of the way first: a source may sit on another one's target.
    parked = [_dup_above(fd, 3 + len(extra)) for fd in extra]
    actions += [(os.POSIX_SPAWN_DUP2, fd, 3 + at) for at, fd in enumerate(parked)]
    try:
        return os.posix_spawnp(
            program or arguments[0],
            list(arguments),
            _ENVIRONMENT if environment is None else environment,
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
        )
    except OSError as error:
        name = f'exec: "{arguments[0]}"'
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"{name}: executable file not found in $PATH") from error
        raise Unknown(f"{name}: {error.strerror}") from error
    finally:
        for fd in parked:
            os.close(fd)


def _dup_above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


async def finish(loop: Loop, reaper: Reaper, pid: int, seconds: float, what: str) -> Exit:
    """Waits for a spawned program; kills it and its process group when the time is over.

    Raises DeadlineExceeded, after the program is gone."""
    ended = reaper.exit_of(pid)
    try:
        return await loop.within(seconds, ended, what)
    except DeadlineExceeded:
        os.killpg(pid, _SIGKILL)  # not reaped yet, so the pid is still the program's
        await ended
        raise
