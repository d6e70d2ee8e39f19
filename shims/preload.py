"""Prepares the interpreter that shims are forked from.

What is imported and run here, before the first fork, is memory that all shims share; what a shim
does for the first time itself is memory of its own.
"""

from __future__ import annotations

from supervisord.linux import cgroups


def warm() -> None:
    """Imports what a shim imports late."""
    import fcntl  # noqa: F401
    import json  # noqa: F401
    import select  # noqa: F401
    import termios  # noqa: F401

    if cgroups.is_unified():
        from supervisord.linux import cgroups_v2  # noqa: F401
    else:
        from supervisord.linux import cgroups_v1  # noqa: F401
