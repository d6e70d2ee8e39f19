"""Log files that the shim writes itself: ``file://`` as it comes, ``cri://`` line by line.

``stdio`` opens them; both streams of a process may lead to one file. A file that cannot be written
(a full disk) never holds up its container: what does not fit is dropped, counted and told in the
shim's log, and writing is tried again with whatever comes next. Files are rotated by whoever
renames them and asks for ``reopen``.

A line of ``cri://`` is what kubelet reads: ``<time> stdout|stderr F|P <content>``, the time as
RFC 3339 with nanoseconds, P for a part of a line that goes on in the next entry of its stream.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH103, PTH120
from __future__ import annotations

import os
import time
from collections.abc import Sequence

from supervisord.contracts.errors import InvalidArgument

from . import log
from .targets import pairs

MAX_LINE = 16 << 10
"""The longest content of an entry unless the URI says otherwise, in bytes: containerd's."""

_LONGEST = 1 << 20
_TOLD_SECONDS = 30.0
_MODES = {"file": 0o644, "cri": 0o640}


def max_line(query: str, field: str) -> int:
    """The value of ``max-line``. Raises InvalidArgument for it and for all other words."""
    length = MAX_LINE
    for key, value in pairs(query):
        if key != "max-line":
            raise InvalidArgument(f"{field}: cri:// knows max-line only, not {key!r}")
        digits = value if value.isascii() and value.isdigit() and len(value) < 9 else "0"
        if not 1 <= int(digits) <= _LONGEST:
            raise InvalidArgument(f"{field}: max-line: {value!r} is not between 1 and {_LONGEST}")
        length = int(value)
    return length


class LogFile:
    """One file, appended to. Closed when the last of its ``users`` has left."""

    def __init__(self, scheme: str, path: str) -> None:
        """Opens or makes it, and the folders above. Raises OSError."""
        self.path = path
        self.lost = 0
        """Bytes that could not be written."""
        self._scheme = scheme
        self._users = 0
        self._torn = False
        self._told = 0.0
        self._fd = self._open()

    def _open(self) -> int:
        os.makedirs(os.path.dirname(self.path), 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self.path, flags, _MODES[self._scheme])

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def enter(self) -> None:
        """One more stream leads here."""
        self._users += 1

    def leave(self) -> None:
        """A stream has ended."""
        self._users -= 1
        if self._users <= 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self.lost:
                log.warning("a log is incomplete", path=self.path, lost=self.lost)

    def reopen(self) -> None:
        """Goes on in a new file of the same name. Raises OSError; then it goes on in the old."""
        fd = self._open()
        os.close(self._fd)
        self._fd = fd
        self._torn = False

    def write(self, data: bytes) -> None:
        """Appends, or drops what cannot be written."""
        if self._torn:
            data = b"\n" + data  # what was cut must not swallow the next line
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
        except OSError as error:
            if written and self._scheme == "cri":
                self._torn = data[written - 1] != ord("\n")
            self._drop(len(data) - written, error)
            return
        self._torn = False

    def _drop(self, count: int, error: OSError) -> None:
        self.lost += count
        now = time.monotonic()
        if not self._told or now - self._told > _TOLD_SECONDS:
            self._told = now
            log.warning("output is dropped", path=self.path, lost=self.lost, error=error)


class RawStream:
    """A stream that is written as it comes."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        file.enter()

    def take(self, data: bytes) -> None:
        self._file.write(data)

    def end(self) -> None:
        self._file.leave()


class CriStream:
    """A stream that is written as entries; at most one unfinished line is held."""

    def __init__(self, file: LogFile, name: str, longest: int) -> None:
        """``name``: stdout or stderr."""
        self._file = file
        self._full = f" {name} F ".encode()
        self._part = f" {name} P ".encode()
        self._longest = longest
        self._rest = bytearray()
        file.enter()

    def take(self, data: bytes) -> None:
        end = data.rfind(b"\n")
        if end >= 0:
            lines = bytes(self._rest) + data[:end]
            self._rest = bytearray(data[end + 1 :])
            self._file.write(self._entries(lines))
        else:
            self._rest += data
        self._cut()

    def end(self) -> None:
        """The stream has ended: a line without its end counts as a part."""
        if self._rest:
            self._file.write(_now() + self._part + self._rest + b"\n")
            self._rest.clear()
        self._file.leave()

    def _entries(self, lines: bytes) -> bytes:
        """Whole lines, without the last newline, as entries."""
        if b"\r" in lines:
            lines = lines.replace(b"\r\n", b"\n").removesuffix(b"\r")
        now = _now()
        full = now + self._full
        if not self._too_long(lines):
            return b"%b%b\n" % (full, lines.replace(b"\n", b"\n" + full))
        entries = []
        for line in lines.split(b"\n"):
            *before, last = self._pieces(line)
            entries += [now + self._part + piece for piece in before]
            entries.append(full + last)
        return b"\n".join(entries) + b"\n"

    def _too_long(self, lines: bytes) -> bool:
        """Whether there is a line longer than an entry may be."""
        at = 0
        while at + self._longest < len(lines):
            at = lines.rfind(b"\n", at, at + self._longest + 1) + 1
            if not at:
                return True
        return False

    def _pieces(self, line: bytes) -> Sequence[bytes]:
        size = self._longest
        return [line[at : at + size] for at in range(0, len(line), size)] or [b""]

    def _cut(self) -> None:
        """Writes what an unfinished line has too much, as parts."""
        rest = self._rest
        while len(rest) > self._longest + rest.endswith(b"\r"):
            self._file.write(_now() + self._part + rest[: self._longest] + b"\n")
            del rest[: self._longest]


def _now() -> bytes:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanos)
