"""Network namespaces: opening one by its path."""

from __future__ import annotations

import errno
import fcntl
import os

from supervisord.contracts.errors import InvalidArgument, NotFound, Unknown

_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at ``path``, which keeps it in being (ioctl_ns(2)).

    Raises NotFound, InvalidArgument (something else is there), Unknown."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"network namespace {path!r}: not found") from None
    except OSError as error:
        raise Unknown(f"network namespace {path!r}: {error.strerror}") from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            raise InvalidArgument(f"netns_path: {path!r} is no network namespace") from None
        raise Unknown(f"network namespace {path!r}: {error.strerror}") from error
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise InvalidArgument(f"netns_path: {path!r} is no network namespace")
    return fd
