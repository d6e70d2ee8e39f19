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
