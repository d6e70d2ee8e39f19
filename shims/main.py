"""The classic way to start a shim: as a program that containerd runs.

``containerd-shim-supervisord-v2 -namespace NS -id ID -address A [-bundle B] start|delete``, in the
bundle's folder. ``start`` leaves a shim behind and prints where it serves: the bare address, or
JSON with version and protocol for a daemon that says it understands version 3. ``delete`` cleans
up after a shim that died, and prints a serialized DeleteResponse. Containers that an annotation
puts in one group share a shim.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Error
from supervisord.linux import mount

from . import log, worker

_GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_SOCKETS = "/run/containerd/s"
_RUNTIME = "runc"
_RUNTIME_ROOT = "/run/containerd/runc"
_SECONDS = 60.0


def main() -> None:
    """The program."""
    flags, action = parse(sys.argv[1:])
    if "v" in flags or "version" in flags:
        sys.stdout.write("containerd-shim-supervisord-v2\n")
    elif not flags.get("namespace") or not flags.get("id"):
        sys.exit("shim namespace and id cannot be empty")
    elif action == "start":
        sys.stdout.write(start(flags))
        sys.stdout.flush()
    elif action == "delete":
        sys.stdout.buffer.write(delete(flags).SerializeToString())
    else:
        sys.exit(f"unknown action {action!r}: start or delete")


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    """Flags as Go programs take them (``-a b``, ``--a=b``), and the action."""
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, found, value = rest.pop(0).lstrip("-").partition("=")
        if not found:
            switch = name in ("debug", "v", "version", "info") or not rest
            value = "true" if switch else rest.pop(0)
        flags[name] = value
    return flags, rest[0] if rest else ""


def start(flags: Mapping[str, str]) -> str:
    """Starts a shim, or finds that of the group; answers what is printed."""
    bundle = Path.cwd()
    name = hashlib.sha256(
        f"{flags.get('address', '')}/{flags['namespace']}/{_group(bundle, flags['id'])}".encode()
    ).hexdigest()
    path = Path(_SOCKETS, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = f"unix://{path}"
    if not _answers(str(path)):
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        log_file = os.open(bundle / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        arguments = {
            "namespace": flags["namespace"],
            "id": flags["id"],
            "address": address,
            "publish": os.environ.get("TTRPC_ADDRESS", ""),
            "runtime": _RUNTIME,
            "runtime_root": _RUNTIME_ROOT,
            "log_level": "debug" if flags.get("debug") == "true" else "info",
            "unlink": True,
        }
        _fork(arguments, listener.detach(), log_file)
    if int(os.environ.get("MAX_SHIM_VERSION", "2")) >= 3:
        return json.dumps({"version": 3, "address": address, "protocol": "ttrpc"})
    return address


def _group(bundle: Path, id: str) -> str:
    annotations = json.loads((bundle / "config.json").read_bytes()).get("annotations") or {}
    return next((annotations[label] for label in _GROUPS if label in annotations), id)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _fork(arguments: Mapping[str, object], listener: int, log_file: int) -> None:
    """Leaves a shim behind, which belongs to init."""
    worker.settle()
    gc.collect()
    gc.freeze()
    if os.fork():
        os.close(listener)
        os.close(log_file)
        return
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)
        Path("/proc/self/comm").write_text("supervisord-shi")
        worker.main(arguments, (listener, log_file))
        status = 0
    except BaseException as error:
        log.error("shim failed", error=repr(error))
        raise
    finally:
        os._exit(status)


def delete(flags: Mapping[str, str]) -> v3.DeleteResponse:
    """Removes what a dead shim's container has left, and tells that it was killed."""
    bundle = Path(flags.get("bundle") or Path.cwd().parent / flags["id"])
    binary, root = _RUNTIME, f"{_RUNTIME_ROOT}/{flags['namespace']}"
    try:
        notes = json.loads((bundle / "runtime.json").read_bytes())
        binary, root = notes["binary"], notes["root"]
    except (OSError, ValueError, KeyError) as error:
        log.warning("runtime.json is not there", error=error)
    command = [binary, "--root", root, "delete", "--force", flags["id"]]
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode:
        log.warning("failed to remove the container", error=done.stderr.decode(errors="replace"))
    try:
        mount.unmount_all(str(bundle / "rootfs"))
    except Error as error:
        log.warning("failed to unmount the rootfs", error=error)
    response = v3.DeleteResponse(exit_status=128 + int(signal.SIGKILL))
    response.exited_at.FromNanoseconds(time.time_ns())
    try:
        response.pid = int((bundle / "init.pid").read_text())
    except (OSError, ValueError) as error:
        log.warning("init.pid is not there", error=error)
    return response


if __name__ == "__main__":
    main()
