"""Runs another process in a container by hand, where that is all that ``runc exec`` would do.

Starting runc, twice as it needs to, costs several times what its work does: it joins the control
groups and namespaces of init, takes on user, limits and capabilities, and executes. A fork of
this process does the same. It belongs to the host's pid namespace, so nothing in the container
sees it, until it has given up all that the new process must not have; only then it forks into the
container. What is not plainly of that kind (seccomp, user namespaces, security labels, terminals)
and whatever goes wrong on the way is left to runc, so its messages are the ones that people know.

Once it has joined the container's mounts the fork must not import anything: modules would come
from the container's files. A container that puts ``/proc/self/exe`` in the place of a program
gets the interpreter, as it gets runc in CVE-2019-5736, so ours must be one that cannot be written
(``supervisord.runtime.zygote`` starts it from a read-only mount of its own).
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH109, PTH113
from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from supervisord.contracts.errors import DeadlineExceeded, Unknown
from supervisord.linux import credentials, executable, syscalls

from . import log
from .bundle import read
from .command import DEFAULT_SIGNALS, Streams

if TYPE_CHECKING:
    from .container import Container

_SECONDS = 60.0
_STATUS_FD = 3
_LAST_FD = (1 << 31) - 1

_NAMESPACES = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}

_KNOWN = frozenset(
    (
        *("rootfs", "umask", "readonlyfs", "rootPropagation", "mounts", "devices", "mount_label"),
        *("hostname", "domainname", "namespaces", "capabilities", "networks", "routes", "cgroups"),
        *("mask_paths", "readonly_paths", "sysctl", "no_new_privileges", "Hooks", "version"),
        *("labels", "no_new_keyring", "rlimits", "oom_score_adj"),
    )
)
"""What a container's configuration in ``state.json`` may hold that a new process is made with, or
that is done with; anything else that is set there is runc's to understand."""

_PROCESS_KNOWN = frozenset(
    (
        *("user", "args", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges"),
        *("oomScoreAdj", "consoleSize"),
    )
)

_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class _LeftToRunc(Exception):
    """Why."""


async def enter(container: Container, description: str, streams: Streams) -> int:
    """Starts the process that the file ``description`` (an OCI process, JSON) tells of, and
    answers its pid: it is going to be a child of ours. 0 where runc has to do it. Call inside
    ``reaper.early``. Raises DeadlineExceeded, Unknown."""
    if not _possible(container):
        return 0
    folder = f"{container.runtime.root}/{container.id}"
    read_end, status = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            # One that is not our child may end, and its pid name another, before we know of it.
            known = container.init.pidfd
            pidfd = os.dup(known) if known >= 0 else os.pidfd_open(container.init.pid)
            try:
                helper = os.fork()
                if helper == 0:
                    _run(folder, description, container.id, pidfd, streams, status)
            finally:
                os.close(pidfd)
        except OSError as error:
            raise Unknown(f"OCI runtime exec failed: {error.strerror}") from error
        finally:
            os.close(status)
        data = await _told(container, read_end, helper)
    finally:
        os.close(read_end)
    pid, failed, reason = data.decode(errors="replace").partition("!")
    if failed or not pid:
        log.debug("exec left to runc", id=container.id, reason=reason or "the helper ended")
        return 0
    return int(pid)


def _possible(container: Container) -> bool:
    return (
        container.exec_by_hand
        and container.runtime.name == "runc"
        and container.private_pids
        and container.init.exit is None
        and executable.is_read_only()
    )


async def _told(container: Container, fd: int, helper: int) -> bytes:
    """All that the helper and what it becomes say: the pid; ``!`` and a reason if it failed."""
    data = b""
    while True:
        try:
            await container.loop.readable(fd, _SECONDS, "exec")
        except DeadlineExceeded:
            for pid in (helper, int(data.partition(b"!")[0] or 0)):
                if pid:
                    _kill(pid)
            raise
        part = os.read(fd, 4096)
        if not part:
            return data
        data += part


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the helper has long done its part


# In the fork ----------------------------------------------------------------------------------


def _run(folder: str, description: str, id: str, pidfd: int, streams: Streams, status: int) -> None:
    """The helper's life; does not return."""
    try:
        _become_anonymous()
        process, _ = _parse(read(description).decode(), 0)
        state, _ = _parse(read(f"{folder}/state.json").decode(), 0)
        config = state["config"]
        _check(process, config)
        status = _settle_descriptors(streams, status, pidfd)
        pidfd = status + 1
        _join_groups(state["cgroup_paths"], config)
        _join_namespaces(config, id, pidfd)
        os.close(pidfd)
        environment, program = _take_on(process, config)
        pid = os.fork()
        if pid:
            os.write(status, b"%d" % pid)
        else:
            os.setsid()
            os.execve(program, process["args"], environment)  # noqa: S606
    except BaseException as error:
        # Anything at all: runc does it then, or finds better words.
        os.write(status, f"!{type(error).__name__}: {error}".encode(errors="replace")[:1024])
    finally:
        os._exit(0)


def _become_anonymous() -> None:
    """Nothing of ours must reach the program, and nobody may look into this process."""
    signal.set_wakeup_fd(-1)
    credentials.forbid_dumps()
    for number in DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    sys.meta_path.clear()
    sys.path.clear()


def _check(process: dict[str, Any], config: dict[str, Any]) -> None:
    for what, known in ((config, _KNOWN), (process, _PROCESS_KNOWN)):
        for key, value in what.items():
            if value and key not in known:
                raise _LeftToRunc(key)
    user = process.get("user") or {}
    for key in user:
        if key not in ("uid", "gid", "additionalGids", "username"):
            raise _LeftToRunc(f"user.{key}")
    for entry in process.get("env") or ():
        if entry.find("=") < 1 or "\0" in entry:
            raise _LeftToRunc("env")
    if not process.get("args") or not process.get("cwd", "").startswith("/"):
        raise _LeftToRunc("args or cwd")


def _settle_descriptors(streams: Streams, status: int, pidfd: int) -> int:
    """0 to 2 are the process's, 3 is the pipe for the status, 4 is init, and that is all.
    Answers 3."""
    above = _STATUS_FD + 2
    null = os.open("/dev/null", os.O_RDWR)
    wanted = [fd if fd >= 0 else null for fd in (streams.stdin, streams.stdout, streams.stderr)]
    # Moved out of the way first: a source may sit on another one's target.
    parked = [_dup_above(fd, above) for fd in (*wanted, status, pidfd)]
    for number, fd in enumerate(parked):
        os.dup2(fd, number, inheritable=number < _STATUS_FD)
    os.closerange(above, _LAST_FD)
    return _STATUS_FD


def _dup_above(fd: int, least: int) -> int:
    while (copy := os.dup(fd)) < least:
        continue
    return copy


def _join_groups(paths: Mapping[str, str], config: dict[str, Any]) -> None:
    """The control groups; a frozen one is for runc to refuse."""
    score = config.get("oom_score_adj")
    if score is not None:
        _write("/proc/self/oom_score_adj", b"%d" % score)
    for name, frozen in (("freezer", "freezer.state"), ("", "cgroup.freeze")):
        path = f"{paths.get(name, '')}/{frozen}"
        if name in paths and os.access(path, os.F_OK):
            state = read(path).strip()
            if state not in (b"THAWED", b"0"):
                raise _LeftToRunc("frozen")
    for path in paths.values():
        _write(f"{path}/cgroup.procs", b"0")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _join_namespaces(config: dict[str, Any], id: str, pidfd: int) -> None:
    flags = 0
    for namespace in config["namespaces"]:
        flag = _NAMESPACES.get(namespace["type"])
        if flag is None:
            raise _LeftToRunc(namespace["type"])
        flags |= flag
    both = _NAMESPACES["NEWNS"] | _NAMESPACES["NEWPID"]
    if flags & both != both:
        raise _LeftToRunc("namespaces")
    syscalls.setns(pidfd, flags)
    if not config.get("no_new_keyring"):
        credentials.join_session_keyring(f"_ses.{id}")


def _take_on(process: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, str], str]:
    """User, limits, capabilities, folder. Answers the environment and the program's path."""
    user = process.get("user") or {}
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    environment = dict(entry.split("=", 1) for entry in process.get("env") or ())
    if not environment.get("HOME"):
        environment["HOME"] = _home(uid)
    for fd in range(3):
        _hand_over(fd, uid)
    for number, soft, hard in _limits(process, config):
        credentials.set_limit(number, soft, hard)
    inside = _enter_folder(process["cwd"])
    masks = _masks(process, config)
    credentials.drop_bounding(masks["bounding"])
    credentials.become(uid, gid, user.get("additionalGids") or ())
    if not inside:
        os.chdir(process["cwd"])
    if not os.getcwd().startswith("/"):
        raise _LeftToRunc("cwd is outside")
    credentials.set_capabilities(
        masks["effective"], masks["permitted"], masks["inheritable"], masks["ambient"]
    )
    if process.get("noNewPrivileges"):
        credentials.forbid_new_privileges()
    credentials.forbid_dumps()
    return environment, _program(process["args"][0], environment)


def _home(uid: int) -> str:
    """The home folder that the container's ``/etc/passwd`` gives a user."""
    try:
        lines = read("/etc/passwd").decode(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return "/"
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) > 5 and fields[2] == str(uid):
            return fields[5]
    return "/"


def _hand_over(fd: int, uid: int) -> None:
    """Makes a stream the user's own, as far as it lets itself be given away."""
    found = os.fstat(fd)
    if found.st_uid == uid or found.st_rdev == os.makedev(1, 3):
        return
    try:
        os.fchown(fd, uid, found.st_gid)
    except OSError as error:
        log.debug("a stream keeps its owner", error=error)


def _limits(process: dict[str, Any], config: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Number, soft and hard limit of each that is set."""
    limits = process.get("rlimits")
    if limits:
        return [
            (credentials.RLIMITS[limit["type"]], limit.get("soft", 0), limit.get("hard", 0))
            for limit in limits
        ]
    return [(limit["type"], limit["soft"], limit["hard"]) for limit in config.get("rlimits") or ()]


def _enter_folder(path: str) -> bool:
    """Whether we could; if not, the user may be able to."""
    try:
        os.chdir(path)
    except PermissionError:
        return False
    return True


def _masks(process: dict[str, Any], config: dict[str, Any]) -> dict[str, int]:
    """The five sets of capabilities as masks. An unknown name is left out, as runc does it."""
    sets = process.get("capabilities")
    if sets is None:
        sets = config.get("capabilities") or {}
    lower = {name.lower(): names for name, names in sets.items()}
    masks = {}
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        numbers = {credentials.CAPABILITIES.get(entry, -1) for entry in lower.get(name) or ()}
        masks[name] = sum(1 << number for number in numbers if number >= 0)
    return masks


def _program(name: str, environment: Mapping[str, str]) -> str:
    """The path of the program. Raises FileNotFoundError."""
    if "/" in name:
        candidates = [name]
    else:
        folders = environment.get("PATH", "").split(":")
        candidates = [f"{folder}/{name}" for folder in folders if folder.startswith("/")]
    for path in candidates:
        if os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True):
            return path
    raise FileNotFoundError(name)
