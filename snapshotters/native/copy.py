"""Copies a directory tree with everything that a container can see: ownership, modes, times,
xattrs, hard links, symlinks, devices, holes. Called by the native snapshotter, in a thread.

Files share their extents with the copy where the filesystem can (reflink), else the kernel copies
them. Folders of the source are opened inside it, whatever links a container makes of them
meanwhile. One thread does it all: several only wait for each other, for the interpreter's lock.
"""

# Plain os calls, because this runs for every file.
from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack

from supervisord.linux.openat import open_in_root
from supervisord.linux.xattr import copy_xattrs

_FICLONE = 0x40049409
_CHUNK = 1 << 30
_SMALL = 1 << 17  # bytes that are read and written quicker than the kernel is asked to copy them
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_NOT_PERMITTED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: str, target: str) -> int:
    """Copies what is in ``source`` into the directory ``target``, which is there and empty, and
    gives it the attributes of ``source``. Answers the number of names in it, and one for itself.

    Raises OSError."""
    with ExitStack() as stack:
        tops = []
        for path in (source, target):
            tops.append(os.open(path, _FOLDER))
            stack.callback(os.close, tops[-1])
        return _Copy(*tops).run()


class _Copy:
    """One copy, between two open folders; names below them are relative paths as bytes."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._reflinks = True
        self._entries = 1
        self._owner = os.geteuid(), os.getegid()
        self._first: dict[tuple[int, int], bytes] = {}
        self._links: list[tuple[bytes, bytes]] = []

    def run(self) -> int:
        made: list[bytes] = []
        waiting = [b"."]
        while waiting:
            made.append(waiting.pop())
            waiting += self._folder(made[-1])
        for first, name in self._links:
            top = self._target
            os.link(first, name, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
        for path in reversed(made):  # children first, so that they leave the times alone
            self._folder_attributes(path)
        return self._entries

    def _folder(self, path: bytes) -> list[bytes]:
        """Copies what is in one folder; of the folders in it, which are answered, only names."""
        found = []
        with ExitStack() as stack:
            reading = open_in_root(self._source, path, _FOLDER)
            stack.callback(os.close, reading)
            writing = os.open(path, _FOLDER, dir_fd=self._target)
            stack.callback(os.close, writing)
            with os.scandir(reading) as entries:
                for entry in entries:
                    self._entries += 1
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        os.mkdir(name, 0o700, dir_fd=writing)
                        found.append(path + b"/" + name)
                        continue
                    info = entry.stat(follow_symlinks=False)
                    if info.st_nlink > 1 and self._is_link(path + b"/" + name, info):
                        continue
                    if stat.S_ISREG(info.st_mode):
                        self._file(name, reading, writing)
                    else:
                        _special(name, reading, writing, info)
        return found

    def _is_link(self, path: bytes, info: os.stat_result) -> bool:
        """Whether a file has been met by another name; it is linked when that is there."""
        first = self._first.setdefault((info.st_dev, info.st_ino), path)
        if first != path:
            self._links.append((first, path))
        return first != path

    def _file(self, name: bytes, reading: int, writing: int) -> None:
        source = os.open(name, _READ, dir_fd=reading)
        try:
            info = os.fstat(source)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fsdecode(name))
            target = os.open(name, _WRITE, 0o600, dir_fd=writing)
            try:
                if info.st_size and not self._reflink(source, target):
                    _contents(source, target, info)
                # The folder that it is in has no set-group bit yet: it is ours.
                _attributes(source, target, info, self._owner)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _reflink(self, reading: int, writing: int) -> bool:
        if not self._reflinks:
            return False
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError as error:
            if error.errno in (*_NO_RANGE, errno.ENOTTY, errno.EPERM):
                # EINVAL may be of this one file; the others are of the filesystem.
                self._reflinks = error.errno in (errno.EINVAL, errno.EPERM)
                return False
            raise
        return True

    def _folder_attributes(self, path: bytes) -> None:
        with ExitStack() as stack:
            reading = open_in_root(self._source, path, _FOLDER)
            stack.callback(os.close, reading)
            writing = os.open(path, _FOLDER, dir_fd=self._target)
            stack.callback(os.close, writing)
            _attributes(reading, writing, os.fstat(reading))


def _attributes(
    source: int, target: int, info: os.stat_result, owner: tuple[int, int] = (-1, -1)
) -> None:
    """Of an open file or folder that belongs to ``owner``, if that is known. The new owner comes
    first, as the change clears set-id bits."""
    if (info.st_uid, info.st_gid) != owner:
        os.fchown(target, info.st_uid, info.st_gid)
    copy_xattrs(source, target, tolerated=_NOT_PERMITTED)  # security.* often are not
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _special(name: bytes, reading: int, writing: int, info: os.stat_result) -> None:
    """A symlink, a device, a fifo, or a socket: nothing that could be opened."""
    is_link = stat.S_ISLNK(info.st_mode)
    if is_link:
        os.symlink(os.readlink(name, dir_fd=reading), name, dir_fd=writing)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=writing)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=writing, follow_symlinks=False)
    places = [b"/proc/self/fd/%d/%s" % (folder, name) for folder in (reading, writing)]
    copy_xattrs(*places, tolerated=_NOT_PERMITTED)
    if not is_link:
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=writing)
    times = (info.st_atime_ns, info.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=writing, follow_symlinks=False)


def _contents(reading: int, writing: int, info: os.stat_result) -> None:
    """Copies the parts that hold data; holes stay holes."""
    size = info.st_size
    if size <= _SMALL and info.st_blocks * 512 >= size:
        data = os.read(reading, size)
        if len(data) == size and os.write(writing, data) == size:
            return
    os.ftruncate(writing, size)
    for start, end in _parts(reading, size):
        _copy_range(reading, writing, start, end)


def _parts(reading: int, size: int) -> Sequence[tuple[int, int]]:
    found = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(reading, offset, os.SEEK_DATA)
            end = os.lseek(reading, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole until the end
                break
            if error.errno != errno.EINVAL:
                raise
            start, end = offset, size
        found.append((start, min(end, size)))
        offset = end
    return found


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
