"""The shim's log: one line per message on standard error, which is the log file.

The logging package is not used, because it imports threading, whose hooks run in every fork.
"""

from __future__ import annotations

import os
import time

LEVELS = {"trace": 0, "debug": 1, "info": 2, "warning": 3, "warn": 3, "error": 4, "fatal": 5}

_least = 2


def set_level(name: str) -> None:
    """Only messages of this level and above are written; an unknown name means info."""
    set_least(LEVELS.get(name.lower(), 2))


def set_least(number: int) -> None:
    """The same, by the number of a level."""
    global _least
    _least = number


def least() -> int:
    """The number of the least level that is written."""
    return _least


def debug(message: str, **fields: object) -> None:
    _write("debug", message, fields)


def info(message: str, **fields: object) -> None:
    _write("info", message, fields)


def warning(message: str, **fields: object) -> None:
    _write("warning", message, fields)


def error(message: str, **fields: object) -> None:
    _write("error", message, fields)


def _write(level: str, message: str, fields: dict[str, object]) -> None:
    if LEVELS[level] < _least:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    parts = [f"time={stamp}.{int(now * 1000) % 1000:03d}Z level={level} msg={_quoted(message)}"]
    parts += [f"{key}={_quoted(str(value))}" for key, value in fields.items()]
    line = " ".join(parts).encode(errors="backslashreplace") + b"\n"
    try:
        os.write(2, line)
    except OSError:
        return  # a full disk must not end the supervisor of a container


def _quoted(text: str) -> str:
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
