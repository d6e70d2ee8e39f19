"""The progress of a transfer for people: a bar for each layer, or plain lines off a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..output import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from protos.containerd.types.transfer.transfer_pb2 import Progress

_DONE = {"complete", "already exists", "extracted"}
_NODES = ("layer-", "config-", "manifest-", "index-", "unknown-")
_SHOWN = 12


class Ticker:
    """Shows what it is ``told``. Use it as a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> Ticker:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[state]:<14}"),
                TextColumn("{task.fields[amount]:>17}"),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def told(self, progress: Progress) -> None:
        """One report of the daemon's."""
        if self._quiet or not progress.name.startswith(_NODES):
            return
        kind, _, digest = progress.name.partition("-")
        name = f"{kind} {digest.partition(':')[2][:_SHOWN]}"
        if self._bars is not None:
            self._bar(self._bars, name, progress)
        elif progress.event in _DONE and self._said.get(name) != progress.event:
            self._said[name] = progress.event
            sys.stderr.write(f"{name}: {progress.event} ({human_bytes(progress.total)})\n")

    def _bar(self, bars: Bars, name: str, progress: Progress) -> None:
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = bars.add_task(
                f"{name:<{_SHOWN + 9}}", total=progress.total or None, state="waiting", amount=""
            )
        bars.update(
            task,
            completed=progress.progress,
            total=progress.total or None,
            state=_state(progress.event),
            amount=f"{human_bytes(progress.progress)}/{human_bytes(progress.total)}",
        )


def _state(event: str) -> str:
    """Extraction goes on during the download: both are one bar."""
    return {"complete": "downloaded", "extracted": "unpacked", "already exists": "here"}.get(
        event, event
    )
