"""The bundle: a container's folder in the state directory, and what the shim keeps in it.

The daemon (or containerd) makes it with ``config.json``. The shim adds ``rootfs`` (the mount
point), ``init.pid``, ``runtime.json`` (how to call the runtime, for whoever has to clean up after
a dead shim: ``binary``, ``root``, ``systemd_cgroup``) and ``exits/``.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH102, PTH103, PTH108
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

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
        return f"{self.path}/{exec_id}.pid"

    def exec_process_file(self, exec_id: str) -> str:
        return f"{self.path}/{exec_id}.process.json"

    def prepare(self, binary: str, root: str, systemd_cgroup: bool) -> None:
        """Makes the shim's own folders and notes how to call the runtime. Raises Unknown."""
        try:
            os.makedirs(root, 0o711, exist_ok=True)
            for folder, mode in ((exits.FOLDER, 0o700), (ROOTFS, 0o711)):
                try:
                    os.mkdir(f"{self.path}/{folder}", mode)
                except FileExistsError:
                    continue
            self.write(
                RUNTIME,
                json.dumps({"binary": binary, "root": root, "systemd_cgroup": systemd_cgroup}),
            )
        except OSError as error:
            raise Unknown(f"bundle {self.path!r}: {error}") from error

    def write(self, name: str, text: str | bytes) -> str:
        """Writes a file and answers its path."""
        path = f"{self.path}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode() if isinstance(text, str) else text)
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

    def has_poststop_hooks(self) -> bool:
        """Whether something of the container's runs after its end, and may want the rootfs."""
        try:
            with open(f"{self.path}/config.json", "rb") as file:
                return b'"poststop"' in file.read()
        except OSError:
            return False


def remove(path: str) -> None:
    """Removes a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
