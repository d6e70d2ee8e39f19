"""Copies a directory tree with everything that a container can see: ownership, modes, times,
xattrs, hard links, symlinks, devices, holes. Called by the native snapshotter, in a thread.
"""

# Plain os calls, because this runs for every file.
# ruff: noqa: PTH101, PTH102, PTH115, PTH211
from __future__ import annotations

import errno
import fcntl
import os
import stat

from supervisord.linux.xattr import copy_xattrs

_FICLONE = 0x40049409
_CHUNK = 1 << 30
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_NOT_PERMITTED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)

_Links = dict[tuple[int, int], str]


def copy_tree(source: str, target: str) -> None:
    """Copies what is in ``source`` into the directory ``target``, which is there and empty, and
    gives it the attributes of ``source``. Raises OSError."""
    links: _Links = {}
    folders = [(source, target)]
    made = []
    while folders:
        folder, into = folders.pop()
        made.append((folder, into))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{into}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(path, 0o700)
                    folders.append((entry.path, path))
                else:
                    _copy_entry(entry.path, path, entry.stat(follow_symlinks=False), links)
    for folder, into in reversed(made):  # children first, so that they leave the times alone
        _copy_attributes(folder, into, os.lstat(folder))


def _copy_entry(source: str, target: str, found: os.stat_result, links: _Links) -> None:
    if found.st_nlink > 1:
        identity = (found.st_dev, found.st_ino)
        first = links.setdefault(identity, target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
    if stat.S_ISREG(found.st_mode):
        _copy_file(source, target, found.st_size)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
    else:  # a device, a fifo, or a socket
        os.mknod(target, found.st_mode, found.st_rdev)
    _copy_attributes(source, target, found)


def _copy_attributes(source: str, target: str, found: os.stat_result) -> None:
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    copy_xattrs(source, target, tolerated=_NOT_PERMITTED)  # security.* often are not
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))  # after chown, which clears set-id bits
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _copy_file(source: str, target: str, size: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size and not _reflink(reading, writing):
                os.ftruncate(writing, size)
                _copy_data(reading, writing, size)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _reflink(reading: int, writing: int) -> bool:
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno in (*_NO_RANGE, errno.ENOTTY, errno.EPERM):
            return False
        raise
    return True


def _copy_data(reading: int, writing: int, size: int) -> None:
    """Copies the parts that hold data; holes stay holes."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(reading, offset, os.SEEK_DATA)
            end = os.lseek(reading, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole until the end
                return
            if error.errno != errno.EINVAL:
                raise
            start, end = offset, size
        _copy_range(reading, writing, start, min(end, size))
        offset = end


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        count = min(end - start, _CHUNK)
        if in_kernel:
            try:
                copied = os.copy_file_range(reading, writing, count, start, start)
            except OSError as error:
                if error.errno not in _NO_RANGE:
                    raise
                in_kernel = False
                continue
        else:
            copied = os.pwrite(writing, os.pread(reading, min(count, 1 << 20), start), start)
        if copied == 0:  # the file became shorter meanwhile
            return
        start += copied
