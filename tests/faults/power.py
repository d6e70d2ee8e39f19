"""What a power failure could leave of a folder, at any moment of a recorded run.

``recorded`` runs a program under strace; ``Disk`` replays its system calls into a model of what the
file system promises: the data of a file is there once the file was synced, a name once its folder
was (or with ``syncfs`` everything before it). What was not synced may be there, in part, or not.
Memory-mapped files (SQLite's ``-shm``) are left out: nothing may rely on them after a crash. So are
files that only take up room.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat", "open", "creat", "close", "write", "pwrite64", "ftruncate", "truncate", "fallocate",
    "fsync", "fdatasync", "syncfs", "sync", "rename", "renameat", "renameat2", "link", "linkat",
    "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
)  # fmt: skip
FORBIDDEN = (
    "writev", "pwritev", "pwritev2", "sendfile", "mknod", "mknodat", "symlink", "symlinkat", "dup",
    "dup2", "dup3",
)  # fmt: skip
"""Calls that the model does not know: they fail the test rather than being passed over."""

SECTOR = 512

_LINE = re.compile(r"(\d+) +(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_PLACE = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?")


@dataclass(frozen=True, slots=True)
class Event:
    """One call that succeeded: when it began and ended (places in the record), its name, its
    strings, its descriptors with their paths, and its other arguments as text."""

    begun: int
    ended: int
    name: str
    strings: Sequence[bytes]
    places: Sequence[tuple[str, str]]
    text: str
    result: int


def recorded(command: Sequence[str], record: Path, *, cwd: Path) -> list[Event]:
    """Runs the command and answers its calls in the order in which they ended."""
    words = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-o", str(record)]
    words += ["-e", "trace=" + ",".join((*CALLS, *FORBIDDEN))]
    done = subprocess.run([*words, *command], cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return list(_events(record))


def _events(record: Path) -> Iterator[Event]:
    begun: dict[str, tuple[int, str]] = {}
    with record.open(encoding="latin-1") as lines:
        for number, line in enumerate(lines):
            match = _LINE.match(line.rstrip("\n"))
            assert match, line[:200]
            thread, text = match.groups()
            start = number
            if text.endswith("<unfinished ...>"):
                begun[thread] = number, text.removesuffix("<unfinished ...>").rstrip()
                continue
            if text.startswith("<..."):
                start, head = begun.pop(thread)
                text = head + _RESUMED.sub("", text, count=1).lstrip()
            call = _CALL.match(text)
            if call is None or int(call[3]) < 0:
                continue  # a signal, an end, a failure
            strings = [bytes.fromhex(found.replace("\\x", "")) for found in _TEXT.findall(call[2])]
            rest = _TEXT.sub("S", call[2])
            places = [
                (fd, bytes.fromhex(path.replace("\\x", "")).decode())
                for fd, path in _PLACE.findall(rest)
            ]
            yield Event(
                start, number, call[1], strings, places, _PLACE.sub("P", rest), int(call[3])
            )


@dataclass(eq=False)
class File:
    """Bytes now, bytes that are durable, and what was done in between."""

    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    since: list[tuple[int, int, bytes | None]] = field(default_factory=list)

    def write(self, when: int, offset: int, data: bytes) -> None:
        _write(self.now, offset, data)
        self.since.append((when, offset, data))

    def resize(self, when: int, size: int) -> None:
        _resize(self.now, size)
        self.since.append((when, size, None))

    def sync(self, when: int) -> None:
        """All that ended before that is durable now."""
        data = bytearray(self.durable)
        for done, offset, piece in self.since:
            if done < when:
                _apply(data, offset, piece)
        self.durable = bytes(data)
        self.since = [each for each in self.since if each[0] >= when]

    def torn(self, chance: random.Random) -> bytes:
        """Some sectors of what was not synced."""
        data = bytearray(self.durable)
        for _, offset, piece in self.since:
            if piece is None:
                if chance.random() < 0.5:
                    _resize(data, offset)
                continue
            for at in range(0, len(piece), SECTOR):
                if chance.random() < 0.5:
                    _write(data, offset + at, piece[at : at + SECTOR])
        return bytes(data)


@dataclass(eq=False)
class Folder:
    """Names now, names that are durable, and what was done in between (None: removed)."""

    now: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    since: list[tuple[int, str, Node | None]] = field(default_factory=list)

    def set(self, when: int, name: str, node: Node | None) -> None:
        _name(self.now, name, node)
        self.since.append((when, name, node))

    def sync(self, when: int) -> None:
        """All that ended before that is durable now."""
        for done, name, node in self.since:
            if done < when:
                _name(self.durable, name, node)
        self.since = [each for each in self.since if each[0] >= when]

    def torn(self, chance: random.Random) -> dict[str, Node]:
        """The first of the changes that were not synced: a folder's are in order."""
        names = dict(self.durable)
        for _, name, node in self.since[: chance.randrange(len(self.since) + 1)]:
            _name(names, name, node)
        return names


Node = File | Folder


class Disk:
    """The model of one folder, ``root``, which is there and durable from the start."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.top = Folder()
        self._open: dict[str, tuple[Node, int, bool]] = {}

    def replay(self, event: Event) -> bool:
        """Whether the call could make a difference to what is left."""
        inside = [path for _, path in event.places if self._is_inside(path)]
        named = any(self._is_inside(self._full(event, n)) for n in range(len(event.strings[:2])))
        if event.name in FORBIDDEN:
            assert not inside and not named, f"the model does not know {event.name}"
            return False
        handle: Callable[[Event], None] | None = getattr(self, f"_{event.name}", None)
        if event.name == "close":
            self._close(event)
            return False
        if handle is None or not (inside or named or event.name in ("sync", "syncfs")):
            return False
        handle(event)
        return True

    # Calls -----------------------------------------------------------------------------------

    def _openat(self, event: Event) -> None:
        path = self._full(event, 0)
        descriptor = str(event.result)
        node = self._find(path)
        if node is None:
            assert "O_CREAT" in event.text, f"opened from nowhere: {path}"
            node = File()
            self._put(event.ended, path, node)
        if "O_TRUNC" in event.text and isinstance(node, File):
            node.resize(event.ended, 0)
        self._open[descriptor] = node, 0, "O_APPEND" in event.text

    def _close(self, event: Event) -> None:
        for descriptor, _ in event.places:
            self._open.pop(descriptor, None)

    def _write(self, event: Event) -> None:
        descriptor = event.places[0][0]
        node, position, append = self._open[descriptor]
        assert isinstance(node, File)
        position = len(node.now) if append else position
        data = event.strings[0][: event.result]
        node.write(event.ended, position, data)
        self._open[descriptor] = node, position + len(data), append

    def _pwrite64(self, event: Event) -> None:
        node = self._file(event)
        offset = int(event.text.rsplit(",", 1)[1])
        node.write(event.ended, offset, event.strings[0][: event.result])

    def _ftruncate(self, event: Event) -> None:
        self._file(event).resize(event.ended, int(event.text.rsplit(",", 1)[1]))

    def _truncate(self, event: Event) -> None:
        node = self._find(self._full(event, 0))
        assert isinstance(node, File)
        node.resize(event.ended, int(event.text.rsplit(",", 1)[1]))

    def _fallocate(self, event: Event) -> None:
        node = self._file(event)
        *_, offset, length = event.text.split(",")
        end = int(offset) + int(length)
        if end > len(node.now):
            node.resize(event.ended, end)

    def _fsync(self, event: Event) -> None:
        descriptor = event.places[0][0]
        self._open[descriptor][0].sync(event.begun)

    _fdatasync = _fsync

    def _syncfs(self, event: Event) -> None:
        seen: set[int] = set()
        waiting: list[Node] = [self.top, *(node for node, *_ in self._open.values())]
        while waiting:
            node = waiting.pop()
            if id(node) not in seen:
                seen.add(id(node))
                node.sync(event.begun)
                if isinstance(node, Folder):
                    waiting += node.now.values()

    _sync = _syncfs

    def _rename(self, event: Event) -> None:
        source, target = self._full(event, 0), self._full(event, 1)
        node = self._find(source)
        assert node is not None, source
        self._put(event.ended, target, node)
        self._put(event.ended, source, None)

    _renameat = _renameat2 = _rename

    def _link(self, event: Event) -> None:
        node = self._find(self._full(event, 0))
        assert node is not None
        self._put(event.ended, self._full(event, 1), node)

    _linkat = _link

    def _unlink(self, event: Event) -> None:
        self._put(event.ended, self._full(event, 0), None)

    _unlinkat = _rmdir = _unlink

    def _mkdir(self, event: Event) -> None:
        self._put(event.ended, self._full(event, 0), Folder())

    _mkdirat = _mkdir

    # Places ----------------------------------------------------------------------------------

    def _is_inside(self, path: str) -> bool:
        return path == self.root or path.startswith(f"{self.root}/")

    def _full(self, event: Event, number: int) -> str:
        """The path of a string argument, below its descriptor where it has one."""
        if number >= len(event.strings):
            return ""
        path = os.fsdecode(event.strings[number])
        if path.startswith("/") or not event.places:
            return path
        base = event.places[min(number, len(event.places) - 1)][1]
        return os.path.normpath(f"{base}/{path}")

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.top
        for part in Path(path).relative_to(self.root).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def _put(self, when: int, path: str, node: Node | None) -> None:
        folder = self._find(os.path.dirname(path))
        assert isinstance(folder, Folder), path
        folder.set(when, os.path.basename(path), node)

    def _file(self, event: Event) -> File:
        node = self._open[event.places[0][0]][0]
        assert isinstance(node, File)
        return node

    # States ----------------------------------------------------------------------------------

    def state(self, kind: str, chance: random.Random) -> State:
        """What could be left now: the ``least``; all ``names`` but only the data that was synced;
        ``all``; and some of what is in between (``torn``)."""
        match kind:
            case "least":
                return self._state(kind, lambda f: f.durable, lambda f: f.durable)
            case "names":
                return self._state(kind, lambda f: f.now, lambda f: f.durable)
            case "torn":
                return self._state(kind, lambda f: f.torn(chance), lambda f: f.torn(chance))
        return self._state("all", lambda f: f.now, lambda f: bytes(f.now))

    def _state(
        self,
        kind: str,
        names: Callable[[Folder], Mapping[str, Node]],
        data: Callable[[File], bytes],
    ) -> State:
        tree: dict[str, bytes | None] = {}
        first: dict[int, str] = {}

        def visit(folder: Folder, path: str) -> None:
            for name, node in sorted(names(folder).items(), key=lambda item: item[0]):
                place = f"{path}/{name}" if path else name
                if isinstance(node, Folder):
                    tree[place] = None
                    visit(node, place)
                elif not name.endswith("-shm") and ".reserve" not in name:
                    tree[place] = data(node)
                    if first.setdefault(id(node), place) != place:
                        links.append((first[id(node)], place))

        links: list[tuple[str, str]] = []
        visit(self.top, "")
        return State(kind, tree, links)


@dataclass(frozen=True)
class State:
    """One folder that could be left: bytes of files, None for folders, names of the same file."""

    kind: str
    tree: Mapping[str, bytes | None]
    links: Sequence[tuple[str, str]]

    def identity(self) -> str:
        """The same for states that do not differ."""
        digest = hashlib.sha256()
        for path, data in self.tree.items():
            content = hashlib.sha256(data).digest() if isinstance(data, bytes) else b""
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()

    def lay(self, target: Path) -> None:
        """Makes it."""
        target.mkdir()
        same = {second: first for first, second in self.links}
        for path, data in self.tree.items():
            place = target / path
            if data is None:
                place.mkdir()
            elif path in same:
                place.hardlink_to(target / same[path])
            elif isinstance(data, bytes):
                with place.open("wb") as file:
                    if data.strip(b"\0"):
                        file.write(data)
                    else:
                        file.truncate(len(data))


def _write(data: bytearray, offset: int, piece: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _apply(data: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        _resize(data, offset)
    else:
        _write(data, offset, piece)


def _name(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node
