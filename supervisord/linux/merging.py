"""Same pages of several processes kept once: the kernel's samepage merging (KSM).

The kernel looks through memory that was offered for it and lets equal pages share one copy until
somebody writes to it. It does so only where its administrator has switched that on, for the whole
machine, in ``/sys/kernel/mm/ksm/run`` (kernel: admin-guide/mm/ksm.rst). An offer is a mark on a
mapping: a fork inherits it, an executed program does not.
"""

from __future__ import annotations

from . import syscalls

SWITCH = "/sys/kernel/mm/ksm/run"

_MADV_MERGEABLE = 12
_RUNNING = "1"


def offer() -> int:
    """Offers all private memory that this process writes to; answers its bytes. Raises OSError,
    among others where the kernel knows nothing of merging."""
    offered = 0
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        place, mode = line.split(None, 2)[:2]
        if mode.startswith("rw") and mode.endswith("p"):
            start, end = (int(number, 16) for number in place.split("-"))
            syscalls.madvise(start, end - start, _MADV_MERGEABLE)
            offered += end - start
    return offered


def switch_on(switch: str = SWITCH) -> bool:
    """Has the kernel merge what is offered; whether it did not already. Raises OSError."""
    with open(switch, "r+") as file:
        if file.read().strip() == _RUNNING:
            return False
        file.seek(0)
        file.write(_RUNNING)
        return True
