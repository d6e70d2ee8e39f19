"""Bundles: a task's folder ``STATE/tasks/NAMESPACE/ID`` with all that a restart needs to know.

It holds ``config.json`` (the container's spec), ``rootfs`` (the mount point), ``shim.json`` (the
record of the shim, see ``ShimRecord``), ``shim.log``, ``unclaimed`` while nobody who asked for the
task has come for it, and what the shim itself keeps there: ``runtime.json`` and ``exits/``. A
bundle is removed by a rename into ``STATE/trash`` first, so that its name is free at once, and is
never walked into while anything is mounted in it. No fsync: the state folder does not outlive a
reboot.
"""

# Paths stay strings here: every task is made and removed with these calls.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH110, PTH208, S103

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import msgspec

from supervisord.contracts.errors import Error, InvalidArgument, ResourceExhausted, Unknown
from supervisord.linux import mount, process

_RECORD = "shim.json"
_EXITS = "exits"
_UNCLAIMED = "unclaimed"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class ShimRecord:
    """What reaches a shim again. ``address`` is a socket path; ``binary`` is the executable of a
    foreign shim, "" for ours; ``version`` that of its task service; ``group`` what the container
    shares its shim with ("" for a shim of its own, see ``groups``). ``pid`` and ``start_time``
    are 0 until known. ``init_pid`` and ``init_start`` are set once Create has succeeded: a bundle
    without them is half-made, whatever else is in it, unless it ``restores``: then init is made by
    Start, from a checkpoint. ``order`` tells an equal request from others (see ``orders``), "" in a
    record of an earlier release."""

    address: str
    version: int = 3
    binary: str = ""
    pid: int = 0
    start_time: int = 0
    init_pid: int = 0
    init_start: int = 0
    group: str = ""
    restores: bool = False
    order: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether Create has succeeded."""
        return self.init_pid > 0 or self.restores


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """An exit that the shim wrote down: time in nanoseconds."""

    pid: int
    exit_status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """The paths and files of one bundle."""

    namespace: str
    id: str
    path: str

    @property
    def rootfs(self) -> str:
        """The mount point of the container's root."""
        return f"{self.path}/rootfs"

    def write_record(self, record: ShimRecord) -> None:
        """Replaces the record of the shim at once or not at all. Raises ResourceExhausted,
        Unknown."""
        path = f"{self.path}/{_RECORD}"
        try:
            with open(path + ".tmp", "w") as file:
                file.write(json.dumps(asdict(record)))  # json.dump leaves cycles behind
            os.rename(path + ".tmp", path)
        except OSError as error:
            raise _failed(path, error) from error

    def read_record(self) -> ShimRecord | None:
        """The record of the shim; None where there is none, or it is damaged."""
        known = {field.name for field in fields(ShimRecord)}
        try:
            with open(f"{self.path}/{_RECORD}", "rb") as file:
                values = json.load(file)
            return ShimRecord(**{key: value for key, value in values.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def mark_unclaimed(self) -> None:
        """Notes that nobody waits for the task, before its record makes it whole. A file of its
        own, so that its removal is in nobody's way who writes the record. Raises
        ResourceExhausted, Unknown."""
        path = f"{self.path}/{_UNCLAIMED}"
        try:
            with open(path, "x"):
                pass
        except OSError as error:
            raise _failed(path, error) from error

    def is_unclaimed(self) -> bool:
        """Whether that is noted."""
        return os.path.exists(f"{self.path}/{_UNCLAIMED}")

    def mark_claimed(self) -> None:
        """Somebody has come for the task. Raises Unknown."""
        path = f"{self.path}/{_UNCLAIMED}"
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(path, error) from error

    def read_init(self) -> tuple[int, int]:
        """The pid and start time of the init that the runtime told of, while it lives; zeros
        otherwise. A process that is younger than the file only has got its pid."""
        try:
            with open(f"{self.path}/init.pid", "rb") as file:
                pid, written = int(file.read()), os.fstat(file.fileno()).st_mtime
        except (OSError, ValueError):
            return 0, 0
        started = process.start_time(pid)
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        if started is None or booted + started / os.sysconf("SC_CLK_TCK") > written + 1:
            return 0, 0
        return pid, started

    def read_exit(self, exec_id: str) -> ExitRecord | None:
        """How a process ended, if its shim wrote that down. An exec whose id is ``init`` has a
        file of another name, because ``init`` is that of the first process."""
        name = {"": "init", "init": "init_"}.get(exec_id, exec_id)
        try:
            with open(f"{self.path}/{_EXITS}/{name}.json", "rb") as file:
                values = json.load(file)
            return ExitRecord(
                int(values["pid"]), int(values["exit_status"]), int(values["exited_at_ns"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read_running(self) -> dict[str, int]:
        """The execs that were started and not deleted, with their pids, as the shim noted them."""
        found: dict[str, int] = {}
        try:
            names = os.listdir(f"{self.path}/{_EXITS}")
        except OSError:
            return found
        for name in names:
            exec_id = name.removesuffix(".run")
            if exec_id in (name, "init"):
                continue
            try:
                with open(f"{self.path}/{_EXITS}/{name}", "rb") as file:
                    found[exec_id.removesuffix("_")] = int(json.load(file)["pid"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def read_runtime(self) -> tuple[str, str] | None:
        """The OCI runtime binary and its state folder, as the shim noted them."""
        try:
            with open(f"{self.path}/runtime.json", "rb") as file:
                values = json.load(file)
            return str(values["binary"]), str(values["root"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def log_tail(self, size: int = 2048) -> str:
        """The end of the shim's log, for a message about its failure."""
        try:
            with open(f"{self.path}/shim.log", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""


class BundleStore:
    """All bundles below one state folder. Methods block: those that make and discard a bundle for
    a fraction of a millisecond (the state folder is in memory), ``prepare``, ``all`` and those that
    empty the trash for as long as it takes: call them from a thread."""

    def __init__(self, state: str) -> None:
        self.tasks = f"{state}/tasks"
        self.trash = f"{state}/trash"
        self.leftovers: list[str] = []
        """Discarded by ``create`` itself; the caller has them emptied."""

    def prepare(self) -> None:
        """Makes the folders. Others may pass through them (user namespaces), not list them."""
        os.makedirs(self.tasks, 0o711, exist_ok=True)
        os.makedirs(self.trash, 0o700, exist_ok=True)

    def bundle(self, namespace: str, id: str) -> Bundle:
        """The bundle of a task, made or not."""
        return Bundle(namespace, id, f"{self.tasks}/{namespace}/{id}")

    def create(self, namespace: str, id: str, spec: bytes) -> Bundle:
        """Makes the bundle; one that is in the way belongs to nobody and goes to the trash.

        Raises InvalidArgument (spec), ResourceExhausted, Unknown; nothing is left then."""
        mapped = _mapped_group(_parsed(spec))
        bundle = self.bundle(namespace, id)
        try:
            try:
                os.mkdir(bundle.path, 0o700)
            except FileNotFoundError:
                os.makedirs(f"{self.tasks}/{namespace}", 0o711, exist_ok=True)
                os.mkdir(bundle.path, 0o700)
            except FileExistsError:
                self.leftovers.append(self.discard(bundle))
                os.mkdir(bundle.path, 0o700)
            try:
                if mapped is not None:
                    os.chown(bundle.path, -1, mapped)
                    os.chmod(bundle.path, 0o710)
                os.mkdir(bundle.rootfs, 0o711)
                os.mkdir(f"{bundle.path}/{_EXITS}", 0o700)
                with open(f"{bundle.path}/config.json", "wb") as file:
                    file.write(spec)
            except BaseException:
                self.leftovers.append(self.discard(bundle))
                raise
        except OSError as error:
            raise _failed(bundle.path, error) from error
        return bundle

    def discard(self, bundle: Bundle) -> str:
        """Frees the bundle's name at once, and answers where it went ("" if it was gone)."""
        target = f"{self.trash}/{bundle.id[:40]}-{secrets.token_hex(8)}"
        try:
            os.rename(bundle.path, target)
        except FileNotFoundError:
            return ""
        return target

    def all(self) -> Iterator[Bundle]:
        """Every bundle there is, whole or not."""
        for namespace in sorted(_folders(self.tasks)):
            for id in sorted(_folders(f"{self.tasks}/{namespace}")):
                yield self.bundle(namespace, id)

    def empty(self, path: str) -> None:
        """Removes one folder of the trash for good: unmounts first, and gives up rather than
        delete what is still mounted. Raises Unavailable, Unknown."""
        if not path:
            return
        try:
            for name in _folders(path):
                mount.unmount_all(f"{path}/{name}")
                if name != _EXITS and os.listdir(f"{path}/{name}"):
                    _unmount_below(path)
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unknown(f"removing {path!r}: {error}") from error

    def empty_all(self) -> list[Error]:
        """Removes what an earlier run left in the trash; answers what could not be removed."""
        failures: list[Error] = []
        for name in _folders(self.trash):
            try:
                self.empty(f"{self.trash}/{name}")
            except Error as error:
                failures.append(error)
        return failures


def _failed(path: str, error: OSError) -> Error:
    kind = ResourceExhausted if error.errno in _FULL else Unknown
    return kind(f"{path}: {error.strerror}")


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _unmount_below(path: str) -> None:
    below = [point for point in mount.mount_points() if point.startswith(path + "/")]
    for point in reversed(below):
        mount.unmount_all(point)


class _Mapping(msgspec.Struct, rename="camel"):
    container_id: int = msgspec.field(name="containerID", default=0)
    host_id: int = msgspec.field(name="hostID", default=0)
    size: int = 0


class _Linux(msgspec.Struct, rename="camel"):
    uid_mappings: list[_Mapping] | None = None
    gid_mappings: list[_Mapping] | None = None


class _Process(msgspec.Struct, rename="camel"):
    args: list[str] | None = None
    command_line: str = ""


class _Spec(msgspec.Struct):
    process: _Process
    linux: _Linux | None = None


_decoder = msgspec.json.Decoder(_Spec)


def _parsed(spec: bytes) -> _Spec:
    try:
        return _decoder.decode(spec)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"spec: must be the JSON of an OCI runtime spec: {error}") from error
    except RecursionError as error:
        raise InvalidArgument("spec: must not be nested so deeply") from error


def _mapped_group(spec: _Spec) -> int | None:
    """The host's group for the container's root: it must be able to enter the bundle."""
    if spec.linux is None or not spec.linux.uid_mappings:
        return None
    for mapping in spec.linux.gid_mappings or ():
        if mapping.container_id == 0 and mapping.size > 0:
            return mapping.host_id
    raise InvalidArgument("spec: linux.gidMappings has no mapping for the container's root")
