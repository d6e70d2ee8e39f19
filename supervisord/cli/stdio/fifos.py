"""FIFOs between ``sctl`` and a shim, in a folder of their own that is removed with them.

``sctl`` opens the reading ends before it asks for the task, because a shim waits for a reader when
it opens its own end. A detached task keeps its FIFOs, for ``tasks attach``; they go with the task.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import CliError


@dataclass(frozen=True, slots=True)
class Streams:
    """What a task or exec is told of its streams; paths, URIs, or "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


def beside(address: str) -> str:
    """The folder of FIFOs where no other is asked for: next to the daemon's socket, so that they
    go when what belongs to that daemon goes."""
    return str(Path(address.removeprefix("unix://")).absolute().parent / "fifo")


def create(id: str, *, terminal: bool, parent: str) -> Streams:
    """Makes a folder in ``parent`` with the FIFOs of one process. Raises CliError."""
    base = parent
    try:
        Path(base).mkdir(mode=0o711, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="", dir=base))
        names = ["stdin", "stdout"] if terminal else ["stdin", "stdout", "stderr"]
        paths = {}
        for name in names:
            paths[name] = str(folder / f"{id}-{name}")
            os.mkfifo(paths[name], 0o600)
    except OSError as error:
        raise CliError(f"FIFOs in {base}: {(error.strerror or str(error)).lower()}") from None
    return Streams(terminal=terminal, **paths)


def remove(paths: Iterable[str]) -> None:
    """Removes FIFOs and their folders when empty; what is not a FIFO is left alone."""
    folders = set()
    for path in paths:
        with suppress(OSError):
            if path.startswith("/") and stat.S_ISFIFO(os.lstat(path).st_mode):
                Path(path).unlink()
                folders.add(Path(path).parent)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove_streams(streams: Streams) -> None:
    """Removes the FIFOs of one process."""
    remove((streams.stdin, streams.stdout, streams.stderr))
