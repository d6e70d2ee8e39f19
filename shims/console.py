"""Terminals: the socket over which the runtime hands us the master end of a pty."""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH101, PTH108
from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios

from supervisord.contracts.errors import FailedPrecondition, Unknown

from .loop import Loop

_SECONDS = 30.0
_LONGEST_PATH = 107


class ConsoleSocket:
    """Listens until the runtime has sent the master. Use with ``with``."""

    def __init__(self, folder: str, name: str) -> None:
        self._file = f"{folder}/{name}.sock"
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A unix address is short and a bundle's path may be long: go through our descriptor.
        short = f"/proc/{os.getpid()}/fd/{self._folder}/{name}.sock"
        self.path = self._file if len(self._file) <= _LONGEST_PATH else short
        try:
            self._remove()
            self._socket.bind(self.path)
            os.chmod(self._file, 0o600)
            self._socket.listen(1)
            self._socket.setblocking(False)
        except OSError as error:
            self.close()
            raise Unknown(f"failed to create OCI runtime console socket: {error}") from error

    def __enter__(self) -> ConsoleSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        os.close(self._folder)
        self._remove()

    async def master(self, loop: Loop) -> int:
        """The descriptor of the pty's master. Raises Unknown, DeadlineExceeded."""
        await loop.readable(self._socket.fileno(), _SECONDS, "console socket")
        peer, _ = self._socket.accept()
        with peer:
            peer.setblocking(False)
            await loop.readable(peer.fileno(), _SECONDS, "console socket")
            fds = array.array("i")
            _, ancillary, _, _ = peer.recvmsg(
                4096, socket.CMSG_SPACE(4 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        for surplus in fds[1:]:
            os.close(surplus)
        if not fds:
            raise Unknown("failed to retrieve console master: the runtime sent no descriptor")
        return fds[0]

    def _remove(self) -> None:
        try:
            os.unlink(self._file)
        except FileNotFoundError:
            return


def resize(master: int, width: int, height: int) -> None:
    """Sets the size in characters; the terminal's foreground processes get SIGWINCH."""
    size = struct.pack("HHHH", min(height, 0xFFFF), min(width, 0xFFFF), 0, 0)
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
    except OSError as error:
        raise FailedPrecondition(f"cannot resize a stopped container: {error}") from error
