"""Which OCI runtime containers get that do not ask for one: crun where it works, else runc.

crun is the faster one, but not every release runs on every layout of control groups, so it is
tried: a container with nothing but the machine's own programs, bound read-only, runs ``true``.
The answer is kept in ``ROOT/oci-runtime.json`` for this boot and this binary. The trial runs in the
background from the start of the daemon on; the first task waits for it if it must.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import FailedPrecondition
from supervisord.linux import process

log = logging.getLogger(__name__)

PREFERRED = ("crun", "runc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRIAL_SECONDS = 20.0
_BOUND = ("/usr", "/bin", "/lib", "/lib64")


class OciRuntimes:
    """The choice. ``fixed`` (a name or path from the configuration) takes the choice away."""

    def __init__(self, root: str, owner: TaskOwner, fixed: str = "") -> None:
        self._cache = Path(root, "oci-runtime.json")
        self._fixed = fixed
        self._owner = owner
        self._choice: asyncio.Task[str] | None = None

    def begin(self) -> None:
        """Starts the trial, once."""
        if self._choice is None:
            self._choice = self._owner.spawn(self._choose(), "oci runtime trial")

    async def default(self) -> str:
        """The path of the binary. Raises FailedPrecondition where none is installed."""
        if self._fixed:
            return self._fixed
        self.begin()
        assert self._choice is not None  # noqa: S101 - narrows the type
        return await asyncio.shield(self._choice)

    async def _choose(self) -> str:
        found = [path for name in PREFERRED if (path := shutil.which(name, path=_PATH))]
        if not found:
            raise FailedPrecondition("no OCI runtime is installed: install crun or runc")
        for path in found[:-1]:
            if await self._works(path):
                return path
        return found[-1]

    async def _works(self, binary: str) -> bool:
        key = await asyncio.to_thread(_identity, binary)
        known = await asyncio.to_thread(self._read)
        if known.get(key) in (True, False):
            return bool(known[key])
        failure = await trial(binary)
        log.info("%s %s", binary, f"does not work here: {failure}" if failure else "works here")
        await asyncio.to_thread(self._write, key, not failure)
        return not failure

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._cache.read_bytes())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _write(self, key: str, works: bool) -> None:
        draft = self._cache.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps({key: works}))
            draft.rename(self._cache)
        except OSError as error:
            log.warning("%s: %s", self._cache, error.strerror)  # it is tried again next time


def _identity(binary: str) -> str:
    stat = Path(binary).resolve().stat()
    return f"{binary} {stat.st_mtime_ns} {stat.st_size} {process.boot_id()}"


async def trial(binary: str) -> str:
    """Runs a container with ``binary``; answers why that fails, "" where it works.

    A thread does it to the end, whatever becomes of the caller: a runtime that is killed halfway
    leaves its control groups, and the mount of its own binary in /tmp, to nobody."""
    return await asyncio.to_thread(_trial, binary)


def _trial(binary: str) -> str:
    id = f"trial-{secrets.token_hex(6)}"
    folder = tempfile.mkdtemp(prefix="oci-runtime-")
    try:
        Path(folder, "rootfs").mkdir()
        Path(folder, "config.json").write_text(json.dumps(_spec(id)))
        command = [binary, "--root", f"{folder}/state"]
        failure = _run([*command, "run", "--bundle", folder, id])
        if failure:
            _run([*command, "delete", "--force", id])
        return failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(argv: list[str]) -> str:
    """Why a program failed: the last line that it wrote, as a rule; "" where it did not."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            cwd="/",
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{argv[0]}: did not end in {_TRIAL_SECONDS} s"
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    if not done.returncode:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _spec(id: str) -> dict[str, Any]:
    """What a plain client asks for: namespaces, a device rule, limits on memory and pids."""
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    for path in _BOUND:
        if os.path.isdir(path):  # noqa: PTH112
            options = ["rbind", "ro"]
            mounts.append({"destination": path, "type": "bind", "source": path, "options": options})
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": f"/{id}",
            "namespaces": [{"type": type} for type in ("pid", "ipc", "uts", "mount", "network")],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": 256 << 20},
                "pids": {"limit": 64},
            },
        },
    }
