"""Runs a module with each of its effects counted, and ends it with SIGKILL at a chosen one.

``python effects.py PAGE -m MODULE ARGS`` is ``python -m MODULE ARGS``. An effect is whatever the
interpreter's audit events and the project's own borders tell: files made, renamed and removed,
sockets, processes, mounts, transactions, messages. So the list of effects is never written down
anywhere: what is new is found by running. Stdlib only, and little of it.

PAGE is a file that all processes map: for each kind of process (the daemon, its zygotes, the shims,
forks of shims) an order and a count, then the names of the effects. Order 0 leaves the kind alone,
-1 counts, N ends the process right before its effect N.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KINDS = ("daemon", "zygote", "shim", "fork")
SLOT = struct.Struct("qq")
COUNT = struct.Struct("q")
TEXT = 256
SIZE = 1 << 18

FILES = frozenset(
    {
        "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
        "os.symlink", "os.truncate", "os.setxattr",
    }
)  # fmt: skip
PROCESSES = frozenset({"os.fork", "os.kill", "os.posix_spawn", "subprocess.Popen"})
SOCKETS = frozenset({"socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Effects:
    """The effects of this process and its forks."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        self._page = mmap.mmap(fd, SIZE)
        os.close(fd)
        self.path = os.path.abspath(path)
        self._inside = threading.local()
        self.is_zygote = False
        self._first = os.getpid()

    def kind(self) -> int:
        """Of the process that we are: an index of KINDS."""
        pid = os.getpid()
        if pid == self._first:
            return 1 if self.is_zygote else 0
        return 2 if os.getsid(0) == pid else 3

    def happens(self, effect: str) -> None:
        """Before each effect."""
        at = self.kind() * SLOT.size
        order, count = SLOT.unpack_from(self._page, at)
        if not order:
            return
        COUNT.pack_into(self._page, at + COUNT.size, count + 1)  # the order is the test's
        self._note(f"{KINDS[self.kind()]} {effect}\n")
        if count + 1 == order:
            self._inside.yes = True
            os.kill(os.getpid(), 9)

    def _note(self, line: str) -> None:
        (length,) = struct.unpack_from("q", self._page, TEXT - 8)
        data = line.encode()[: SIZE - TEXT - length]
        self._page[TEXT + length : TEXT + length + len(data)] = data
        struct.pack_into("q", self._page, TEXT - 8, length + len(data))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """For ``sys.addaudithook``."""
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(path, str) and isinstance(flags, int) and flags & WRITING):
                return
            if path.startswith(("/dev/", "/proc/")):
                return
        elif event not in FILES and event not in PROCESSES and event not in SOCKETS:
            return
        if getattr(self._inside, "yes", False):
            return
        self._inside.yes = True
        try:
            what = os.path.basename(str(arguments[0])) if arguments else ""
            self.happens(f"{event} {what}")
        finally:
            self._inside.yes = False

    def around(self, holder: Any, name: str, *, after: bool = True) -> None:
        """Makes calls of a function effects, and what follows them."""
        function = getattr(holder, name)

        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.happens(f"{name} begins")
            answer = function(*arguments, **named)
            if after:
                self.happens(f"{name} is done")
            return answer

        setattr(holder, name, wrapped)


def main() -> None:
    path, flag, module = sys.argv[1:4]
    if flag != "-m":  # the zygote is started with flags of the interpreter before that
        raise SystemExit(f"expected -m, not {flag}")
    effects = Effects(path)
    effects.is_zygote = module == "shims.zygote"
    import supervisord.linux.syscalls as syscalls

    for name in ("mount", "umount2", "ioctl", "syscall"):
        effects.around(syscalls, name)
    for name in ("fsync", "fdatasync"):
        effects.around(os, name, after=False)
    if effects.is_zygote:
        zygote(effects)
    else:
        daemon(effects)
    sys.argv = [module, *sys.argv[4:]]
    sys.addaudithook(effects.hook)
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)


def zygote(effects: Effects) -> None:
    """The borders of shims: records, answers and events."""
    from shims.lean import StandIns

    with StandIns():
        from shims import exits, publisher, rpc

    effects.around(exits, "write")
    effects.around(publisher.Publisher, "publish")
    effects.around(rpc.Wire, "send")


def daemon(effects: Effects) -> None:
    """The borders of the daemon: transactions, frames to shims, events and answers. Its zygotes are
    started with this program too."""
    import asyncio
    import subprocess

    from supervisord.events.exchange import Exchange
    from supervisord.services import server
    from supervisord.sqlite.database import Database
    from supervisord.ttrpc.client import Client
    from supervisord.ttrpc.connection import Connection
    from supervisord.ttrpc.server import _ServerConnection

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **more: Any) -> None:
            if "shims.zygote" in command:
                at = command.index("-m")
                command = [*command[:at], os.path.abspath(__file__), effects.path, *command[at:]]
            super().__init__(command, **more)

    subprocess.Popen = Popen  # type: ignore[misc,assignment]
    effects.around(Database, "_transaction")
    effects.around(Connection, "send")
    for holder, name in (
        (Client, "received"), (_ServerConnection, "received"), (Exchange, "publish"),
        (Exchange, "forward"),
    ):  # fmt: skip
        effects.around(holder, name, after=False)
    plain = server._unary

    def unary(stats: Any, path: str, function: Callable[..., Any]) -> Any:
        handle = plain(stats, path, function)

        async def counted(request: Any, context: Any) -> Any:
            effects.happens(f"{path} begins")
            answer = await handle(request, context)
            asyncio.get_running_loop().call_soon(effects.happens, f"{path} is answered")
            return answer

        return counted

    server._unary = unary
    streaming = server._streaming

    def streamed(stats: Any, path: str, function: Callable[..., Any]) -> Any:
        handle = streaming(stats, path, function)

        async def counted(request: Any, context: Any) -> None:
            effects.happens(f"{path} begins")
            await handle(request, context)
            asyncio.get_running_loop().call_soon(effects.happens, f"{path} is answered")

        return counted

    server._streaming = streamed


if __name__ == "__main__":
    main()
