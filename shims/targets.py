"""Where a stream leads: the path or URI that a client gave, taken apart and opened.

``stdio`` calls it. A URI's path is percent-encoded, a bare path is not.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH116
from __future__ import annotations

import os
import stat
from typing import NamedTuple

from supervisord.contracts.errors import InvalidArgument

SCHEMES = ("fifo", "file", "cri", "binary", "binary-v2")


class Uri(NamedTuple):
    """``scheme`` is ``fifo`` for a bare path; ``path`` is absolute; ``query`` is as it came."""

    scheme: str
    path: str
    query: str


class Opened(NamedTuple):
    """A descriptor to write to. ``keeper`` is a reading end of a FIFO, else -1."""

    fd: int
    keeper: int


def parse(text: str, field: str) -> Uri:
    """Takes a path or a URI apart. Raises InvalidArgument, naming ``field``."""
    scheme, colon, rest = text.partition(":")
    if not colon or "/" in scheme:
        return Uri("fifo", _absolute(text, text, field), "")
    if scheme not in SCHEMES:
        raise InvalidArgument(f"{field}: unknown STDIO scheme {scheme!r}")
    rest, _, query = rest.removeprefix("//").partition("?")
    if "#" in rest or "#" in query:
        raise InvalidArgument(f"{field}: {text!r} must not have a fragment (write # as %23)")
    return Uri(scheme, _absolute(unquote(rest), text, field), query)


def _absolute(path: str, text: str, field: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"{field}: {text!r} must have an absolute path")
    if "\0" in path:
        raise InvalidArgument(f"{field}: {text!r} must not have a zero byte")
    return path


def unquote(text: str) -> str:
    """Undoes percent escapes."""
    if "%" not in text:
        return text
    from urllib.parse import unquote

    return unquote(text)


def pairs(query: str) -> list[tuple[str, str]]:
    """The parts of a query, in their order: the value of ``a`` alone is ""."""
    found = []
    for part in query.split("&"):
        if part:
            key, _, value = part.replace("+", " ").partition("=")
            found.append((unquote(key), unquote(value)))
    return found


def kind(path: str, field: str) -> int:
    """The type of the file there (``stat.S_IFMT``); 0 for none. Raises InvalidArgument."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise refused(field, path, error) from error


def open_target(path: str, field: str) -> Opened:
    """Opens a FIFO or a device to write to. A FIFO is opened for reading too: so neither does the
    open wait for a reader, nor does its going away break the pipe. Raises InvalidArgument."""
    keeper = -1
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            keeper = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return Opened(os.open(path, flags), keeper)
    except OSError as error:
        if keeper >= 0:
            os.close(keeper)
        raise refused(field, path, error) from error


def refused(field: str, path: str, error: OSError) -> InvalidArgument:
    """What a client is told of a path that cannot be opened."""
    return InvalidArgument(f"{field}: opening {path!r}: {error.strerror}")
