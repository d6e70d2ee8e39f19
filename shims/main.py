"""The classic way to start a shim: as a program that containerd runs.

``containerd-shim-supervisord-v2 -namespace NS -id ID -address A [-bundle B] start|delete``, in the
bundle's folder. ``start`` leaves a shim behind and prints where it serves (see ``bootstrap``); the
file ``address`` tells it as well. ``delete`` cleans up after a shim that died, and prints a
serialized DeleteResponse. ``-info`` prints a RuntimeInfo. Containers that an annotation puts in one
group share a shim.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Error, InvalidArgument, Unknown
from supervisord.linux import mount, process

from . import log, worker
from .bootstrap import Order, order
from .zygote import adjust_oom_score

_GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_NAME = "io.containerd.supervisord.v2"
_MAX_INPUT = 10 << 20
_RUNTIME = "runc"
_RUNTIME_ROOT = "/run/containerd/runc"
_SECONDS = 60.0


def main() -> None:
    """The program."""
    flags, action = parse(sys.argv[1:])
    try:
        _run(flags, action)
    except Error as error:
        sys.exit(f"containerd-shim-supervisord-v2: {error.message}")


def _run(flags: Mapping[str, str], action: str) -> None:
    if "v" in flags or "version" in flags:
        sys.stdout.write("containerd-shim-supervisord-v2\n")
    elif "info" in flags:
        from .info import info

        sys.stdout.buffer.write(info(_NAME, _RUNTIME, _input()).SerializeToString())
    elif not flags.get("namespace") or not flags.get("id"):
        sys.exit("shim namespace and id cannot be empty")
    elif action == "start":
        sys.stdout.buffer.write(start(order(flags, os.environ, _input())))
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


def _input() -> bytes:
    return sys.stdin.buffer.read(_MAX_INPUT)


def start(order: Order) -> bytes:
    """Starts a shim, or finds that of the group; answers what is printed. Raises Unknown."""
    bundle = Path.cwd()
    name = hashlib.sha256(
        f"{order.address}/{order.namespace}/{_group(bundle, order.id)}".encode()
    ).hexdigest()
    path = Path(order.sockets, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = f"unix://{path}"
    with _alone(path.parent) as lock:
        if not _answers(str(path)):
            _start(order, path, lock)
    draft = bundle / ".address"
    draft.write_text(address)
    draft.rename(bundle / "address")
    return order.answer(address)


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Two members of a group that start at the same time must not make a shim each."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _start(order: Order, path: Path, lock: int) -> None:
    if os.environ.get("SCHED_CORE"):
        try:
            process.schedule_apart()
        except OSError as error:
            raise Unknown(f"enable sched core support: {error.strerror}") from error
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    log_file = os.open("log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    arguments = {
        "namespace": order.namespace,
        "id": order.id,
        "address": f"unix://{path}",
        "publish": order.ttrpc_address,
        "runtime": _RUNTIME,
        "runtime_root": _RUNTIME_ROOT,
        "log_level": "debug" if order.debug else "info",
        "unlink": True,
    }
    _fork(arguments, listener.detach(), log_file, lock)


def _group(bundle: Path, id: str) -> str:
    try:
        spec = json.loads((bundle / "config.json").read_bytes())
        annotations = spec.get("annotations") or {}
        return next((annotations[label] for label in _GROUPS if label in annotations), id)
    except FileNotFoundError:  # a sandbox need not have one
        return id
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"config.json: is no OCI runtime spec: {error}") from error
    except RecursionError as error:
        raise InvalidArgument("config.json: must not be nested so deeply") from error


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _fork(arguments: Mapping[str, object], listener: int, log_file: int, lock: int) -> None:
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
        os.close(lock)
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)
        Path("/proc/self/comm").write_text("supervisord-shi")
        adjust_oom_score()
        worker.main(arguments, (listener, log_file))
        status = 0
    except BaseException as error:
        log.error("shim failed", error=repr(error))
        raise
    finally:
        os._exit(status)


def delete(flags: Mapping[str, str]) -> v3.DeleteResponse:
    """Removes what a dead shim's container has left, and tells that it was killed. Raises Unknown
    where the runtime cannot be asked or does not answer."""
    bundle = Path(flags.get("bundle") or Path.cwd().parent / flags["id"])
    binary, root = _RUNTIME, f"{_RUNTIME_ROOT}/{flags['namespace']}"
    try:
        notes = json.loads((bundle / "runtime.json").read_bytes())
        binary, root = notes["binary"], notes["root"]
    except (OSError, ValueError, KeyError) as error:
        log.warning("runtime.json is not there", error=error)
    command = [binary, "--root", root, "delete", "--force", flags["id"]]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unknown(f"failed to remove container {flags['id']}: {error}") from error
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
