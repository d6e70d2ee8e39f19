"""The bundle: a container's folder in the state directory, and what the shim keeps in it.

The daemon (or containerd) makes it with ``config.json``. The shim adds ``rootfs`` (the mount
point), ``init.pid``, ``runtime.json`` (how to call the runtime, for whoever has to clean up after
a dead shim: ``binary``, ``root``, ``systemd_cgroup``, and for a shim that takes over ``owner`` and
what ``running`` describes) and ``exits/``.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH102, PTH103, PTH108
from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted

from supervisord.contracts.errors import Unknown
from supervisord.linux import mount

from . import exits

ROOTFS = "rootfs"
INIT_PID = "init.pid"
RUNTIME = "runtime.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Paths and files of one bundle."""

    path: str

    @property
    def rootfs(self) -> str:
        return f"{self.path}/{ROOTFS}"

    @property
    def init_pid_file(self) -> str:
        return f"{self.path}/{INIT_PID}"

    def exec_pid_file(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.exec.pid"  # an exec may be named "init"

    def exec_process_file(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.process.json"

    def prepare(self, binary: str, root: str, systemd_cgroup: bool, notes: str) -> None:
        """Makes the shim's own folders and notes how to call the runtime; ``notes`` are more
        members of that JSON object. Raises Unknown."""
        try:
            if not os.access(root, os.F_OK):
                os.makedirs(root, 0o711, exist_ok=True)
            _folder(f"{self.path}/{exits.FOLDER}", 0o700)
            _folder(self.rootfs, 0o711)
            self.write(
                RUNTIME,
                f'{{"binary": {_quoted(binary)}, "root": {_quoted(root)}, '
                f'"systemd_cgroup": {"true" if systemd_cgroup else "false"}, {notes}}}',
            )
        except OSError as error:
            raise Unknown(f"bundle {self.path!r}: {error}") from error

    def write(self, name: str, text: str | bytes) -> str:
        """Writes a file and answers its path. Raises OSError, for a part of it too."""
        path = f"{self.path}/{name}"
        data = text.encode() if isinstance(text, str) else text
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        return path

    def mount(self, mounts: Sequence[mount.MountSpec]) -> None:
        """Mounts the root filesystem. Raises InvalidArgument, Unknown."""
        if mounts:
            mount.mount_all(mounts, self.rootfs)

    def unmount(self) -> None:
        """Takes away what is mounted at or below the rootfs. Raises Unavailable."""
        mount.unmount_all(self.rootfs)

    def detach(self) -> int:
        """The same, but leaves the last of the work to whoever closes the descriptor that this
        answers; -1 where nothing is left. Raises Unavailable."""
        try:
            held = mount.hold(self.rootfs)
        except OSError:
            held = -1
        try:
            mount.detach_all(self.rootfs)
        except BaseException:
            if held >= 0:
                os.close(held)
            raise
        return held


def _folder(path: str, mode: int) -> None:
    if not os.access(path, os.F_OK):
        os.mkdir(path, mode)


def mentions(folder: str, hook: str) -> bool:
    """Whether a folder's ``config.json`` may have hooks of this kind; only ever wrong by saying
    so."""
    try:
        return f'"{hook}"'.encode() in read(f"{folder}/config.json")
    except OSError:
        return True


def read(path: str) -> bytes:
    """All of a file, without the layers of ``open``. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Removes a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
