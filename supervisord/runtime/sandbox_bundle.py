"""The bundles of sandboxes: ``STATE/sandboxes/NAMESPACE/ID``, as tasks have theirs.

A bundle holds ``config.json`` (the sandbox's spec, if it has one), ``rootfs``, the record of the
shim, and once the sandbox has ended ``exits/init.json``. ``init_pid`` in the record is that of the
shim itself (1 where that does not tell), set once the sandbox is created: a bundle without it is
half-made.
"""

# Paths stay strings here, as in bundle.
# ruff: noqa: PTH103, PTH105

from __future__ import annotations

import json
import os

from supervisord.contracts.errors import ResourceExhausted, Unknown
from supervisord.contracts.sandboxes import SandboxExit

from .bundle import Bundle, BundleStore


class SandboxBundles(BundleStore):
    """All bundles of sandboxes below one state folder."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.tasks = f"{state}/sandboxes"

    def create(self, namespace: str, id: str, spec: bytes) -> Bundle:
        """Makes the bundle; one that is in the way belongs to nobody and goes to the trash.

        Raises ResourceExhausted, Unknown; nothing is left then."""
        bundle = self.bundle(namespace, id)
        trash = self.discard(bundle)
        if trash:
            self.leftovers.append(trash)
        try:
            os.makedirs(f"{bundle.path}/exits", 0o700)
            os.makedirs(bundle.rootfs, 0o711)
            if spec:
                with open(f"{bundle.path}/config.json", "wb") as file:
                    file.write(spec)
        except OSError as error:
            self.leftovers.append(self.discard(bundle))
            kind = ResourceExhausted if error.errno in (28, 122) else Unknown
            raise kind(f"{bundle.path}: {error.strerror}") from error
        return bundle


def write_exit(bundle: Bundle, pid: int, exit: SandboxExit) -> None:
    """Notes how the sandbox ended, at once or not at all. Raises OSError."""
    path = f"{bundle.path}/exits/init.json"
    with open(path + ".tmp", "w") as file:
        json.dump(
            {"pid": pid, "exit_status": exit.exit_status, "exited_at_ns": exit.exited_at}, file
        )
    os.replace(path + ".tmp", path)


def read_exit(bundle: Bundle) -> SandboxExit | None:
    """How the sandbox ended, if it has."""
    found = bundle.read_exit("")
    return None if found is None else SandboxExit(found.exit_status, found.exited_at)
