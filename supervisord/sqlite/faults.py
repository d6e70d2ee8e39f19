"""What SQLite's errors mean: a full disk, a damaged file, a disk that fails.

One translation for the whole room, so that every store answers the same.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from supervisord.contracts.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    ResourceExhausted,
    Unknown,
)

ADVICE = "stop the daemon, and run 'supervisord restore BACKUP' or 'supervisord check --repair'"

_LITTLE = 64 << 10


def code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for what is no error of SQLite's."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_disk(error: BaseException) -> bool:
    """Whether the disk is full or fails: that concerns a whole transaction."""
    return code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def is_damage(error: BaseException) -> bool:
    """Whether the file is not what SQLite wrote."""
    return code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: BaseException, path: str) -> bool:
    """Whether there is no room left where the file is. SQLite calls it an I/O error, or a file
    that cannot be opened, where it was about its log's index or about an inode."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    match code(error):
        case sqlite3.SQLITE_FULL:
            return True
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return _no_room(path)
    return False


def translated(error: BaseException, path: str) -> BaseException:
    """The domain error for one of SQLite's; what is none of these stays what it is."""
    found = _domain(error, path) if isinstance(error, sqlite3.Error) else None
    if found is None:
        return error
    found.__cause__ = error
    return found


def tell(error: sqlite3.Error | OSError, path: str) -> None:
    """Raises the domain error for one of SQLite's or of the disk's, if there is one."""
    found = _domain(error, path)
    if found is not None:
        raise found from error


def _domain(error: sqlite3.Error | OSError, path: str) -> Error | None:
    if is_full(error, path):
        return ResourceExhausted(f"{path}: no space left on the disk: {error}")
    match code(error):
        case sqlite3.SQLITE_READONLY:
            return FailedPrecondition(f"{path}: cannot be written: {error}")
        case sqlite3.SQLITE_IOERR:
            return Unknown(f"{path}: the disk fails: {error}")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DataLoss(f"{path}: {error}: {ADVICE}")
    return None


def _no_room(path: str) -> bool:
    try:
        found = os.statvfs(Path(path).parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _LITTLE or (found.f_files > 0 and not found.f_favail)
