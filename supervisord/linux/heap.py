"""How much freed memory the C library keeps for the next allocation.

By default it gives freed memory at the end of its heap back to the kernel beyond 128 KiB, and has
the kernel map large blocks one by one. Who moves megabytes through buffers then pays the kernel
for every page of every buffer: to find, clear, map and take away again. See mallopt(3).
"""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 32 << 20
"""The most that the C library takes for the latter."""


def keep_freed(size: int) -> bool:
    """Keeps up to ``size`` freed bytes, and large blocks in the heap too. False where the C library
    has no such switch."""
    mallopt = getattr(_libc, "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, size)
    )


def give_back() -> None:
    """Gives all freed memory back to the kernel. Takes about a millisecond, in which other threads
    go on until they allocate."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


_BLOCKS = range(64 << 10, 16, -16)
"""Sizes of blocks that the C library has in its heap, in bytes, the largest first."""


class _Account(ctypes.Structure):
    """``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("_",) * 9 + ("keepcost",)]


def use_up() -> None:
    """Takes all free blocks between those in use, for good: what is allocated from now on lies
    together at the end of the heap. For a process that is about to be forked: where a block is
    taken from or goes to among the free ones, the C library writes to their neighbours, each on
    another page. Does nothing where the C library is not the GNU one."""
    account = getattr(_libc, "mallinfo2", None)
    if account is None:
        return
    account.restype = _Account
    allocate, free, end_of_heap = _libc.malloc, _libc.free, _libc.sbrk
    allocate.restype = end_of_heap.restype = ctypes.c_size_t
    allocate.argtypes = free.argtypes = (ctypes.c_size_t,)
    end_of_heap.argtypes = (ctypes.c_ssize_t,)
    last = end_of_heap(0) - account().keepcost
    for size in _BLOCKS:
        while (block := allocate(size)) < last:
            pass
        free(block)
