"""A runtime's binary, opened so that it need not protect itself.

crun copies its own binary, or binds it read-only, and executes itself once more at every start,
because a container could write to it through ``/proc/self/exe`` (CVE-2019-5736). On a read-only
mount it sees that nobody can, and goes on at once: that halves what its start costs. The mount
belongs to no tree and ends with the process, so there is nothing to undo.
"""

from __future__ import annotations

import os

from supervisord.linux import executable

from . import log
from .command import PATH

_ELF = b"\x7fELF"


def open(binary: str) -> int:
    """A descriptor to execute the program by (``/proc/self/fd/N``); -1 where its path has to do:
    scripts, programs that AppArmor knows by their paths, Linux before 5.12."""
    path = _resolve(binary)
    try:
        if not path or not _is_elf(path) or executable.is_confined(path):
            return -1
        return executable.read_only(path)
    except OSError as error:
        log.debug("executed by its path", binary=binary, error=error)
        return -1


def _resolve(binary: str) -> str:
    """What PATH makes of a name; "" for nothing."""
    if "/" in binary:
        return binary
    for folder in os.environ.get("PATH", PATH).split(":"):
        if folder.startswith("/") and os.access(f"{folder}/{binary}", os.X_OK):
            return f"{folder}/{binary}"
    return ""


def _is_elf(path: str) -> bool:
    """A script's interpreter would open the descriptor, which is closed by then."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, len(_ELF)) == _ELF
    finally:
        os.close(fd)
