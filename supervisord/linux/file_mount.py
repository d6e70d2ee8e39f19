"""Mounts of files (option ``loop``): by a device over the file, or, for erofs, without one.

``linux.mount`` calls it, with its own way to make one mount call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from . import loop
from . import mount_options as opts

Call = Callable[[str, str, str, int, Sequence[str]], None]
"""One mount call: type, source, target, flags, data. Raises OSError, Error."""

_DEVICE = "device="


def mount_file(
    type: str, source: str, target: str, flags: int, options: opts.Options, call: Call
) -> None:
    """Mounts the file ``source``; of its devices none outlives the mount.

    Raises OSError (the file, or the kernel refused), Unavailable."""
    if type == "erofs":
        flags |= opts.RDONLY  # it is anyway, but a device is opened for that which is asked
        try:
            call(type, source, target, flags, options.data)  # Linux 6.12 reads files by itself
            return
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
    with ExitStack() as devices:

        def device(path: str) -> str:
            read_only = bool(flags & opts.RDONLY)
            attached = loop.attached(path, read_only=read_only, direct=options.direct)
            return devices.enter_context(attached)

        source = device(source)
        data = [
            _DEVICE + device(each.removeprefix(_DEVICE)) if each.startswith(_DEVICE) else each
            for each in options.data
        ]
        call(type, source, target, flags, data)
