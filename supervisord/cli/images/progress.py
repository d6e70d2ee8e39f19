"""Progress of long transfers: bars with speed on a terminal, silence otherwise.

``rich`` is imported only when stderr is a terminal; scripts and pipes see plain lines from the
commands themselves.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """One bar per thing under way. Use it as a context manager."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bytes: TaskID | None = None
        self._steps: TaskID | None = None

    def __enter__(self) -> Bars:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=None),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def transfer(self, what: str, total: int) -> None:
        """Begins a bar for ``total`` bytes; the one before is taken as done."""
        if self._progress is not None:
            self._drop()
            self._bytes = self._progress.add_task(what, total=total or None)

    def advance(self, count: int) -> None:
        """Tells of ``count`` more bytes of the current transfer."""
        if self._progress is not None and self._bytes is not None:
            self._progress.advance(self._bytes, count)

    def step(self, what: str, done: int, total: int) -> None:
        """Shows ``done`` of ``total`` steps of something that has no bytes to count."""
        if self._progress is None:
            return
        if self._bytes is not None or self._steps is None:
            self._drop()
            self._steps = self._progress.add_task(what, total=total)
        self._progress.update(
            self._steps, description=f"{what} {done}/{total}", completed=done, total=total
        )

    def _drop(self) -> None:
        for task in (self._bytes, self._steps):
            if task is not None and self._progress is not None:
                self._progress.remove_task(task)
        self._bytes = self._steps = None
