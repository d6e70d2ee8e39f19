"""Structured log lines on standard error: logfmt text, or JSON, one line per record.

What a record is about comes as ``extra`` and becomes fields. Set up once by ``daemon.main``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_WORDS = {logging.WARNING: "warning", logging.CRITICAL: "fatal"}
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str, format: str) -> None:
    """Sends all records of that level and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(level or "info", logging.INFO))
    for chatty in ("asyncio", "grpc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _fields(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Any]:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    nanoseconds = int(record.created % 1 * 1e6) * 1000
    fields: dict[str, Any] = {
        "time": f"{seconds}.{nanoseconds:09d}Z",
        "level": _WORDS.get(record.levelno, record.levelname.lower()),
        "msg": record.getMessage(),
        "room": record.name.removeprefix("supervisord."),
    }
    fields.update((key, value) for key, value in vars(record).items() if key not in _OWN)
    if record.exc_info and record.exc_info[1] is not None:
        fields.setdefault("error", record.exc_info[1])
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields


class TextFormatter(logging.Formatter):
    """logfmt: ``key=value``, quoted where a value has spaces, quotes or control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(v)}" for key, v in _fields(record, self).items())


class JsonFormatter(logging.Formatter):
    """One JSON object; what JSON cannot express is written as text."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record, self), default=str, ensure_ascii=False)


def _quoted(value: Any) -> str:
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' "='):
        return text
    return json.dumps(text, ensure_ascii=False)
