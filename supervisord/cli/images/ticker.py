"""The progress of a transfer for people: a bar for each layer, or plain lines off a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..output import human_bytes

if TYPE_CHECKING:
    from protos.containerd.types.transfer.transfer_pb2 import Progress

    from .bars import Bars

_DONE = {"complete", "already exists", "extracted"}
_NODES = ("layer-", "config-", "manifest-", "index-", "unknown-")
_SMALL = ("config", "manifest", "index")
_SHOWN = 12
_STATES = {"complete": "downloaded", "extracted": "unpacked", "already exists": "here"}
"""Words for people. Extraction goes on during the download: both are one bar."""
_PUSHED = {"complete": "uploaded", "already exists": "there"}


class Ticker:
    """Shows what it is ``told``. Use it as a context manager."""

    def __init__(self, *, quiet: bool = False, pushing: bool = False) -> None:
        self._quiet = quiet
        self._states = _PUSHED if pushing else _STATES
        self._bars: Bars | None = None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Ticker:
        if sys.stderr.isatty() and not self._quiet:
            from .bars import Bars

            self._bars = Bars().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bars is not None:
            self._bars.__exit__(*exc)

    def counted(self, name: str, state: str, done: int, total: int) -> None:
        """Bytes that are counted here, such as of a file that is sent."""
        if self._bars is not None:
            self._bars.update(name, state, done, total)

    def told(self, progress: Progress) -> None:
        """One report of the daemon's."""
        if self._quiet or not progress.name.startswith(_NODES):
            return
        kind, _, digest = progress.name.partition("-")
        name = f"{kind} {digest.partition(':')[2][:_SHOWN]}"
        if self._bars is not None:
            if kind not in _SMALL:
                state = self._states.get(progress.event, progress.event)
                self._bars.update(name, state, progress.progress, progress.total)
        elif progress.event in _DONE and self._said.get(name) != progress.event:
            self._said[name] = progress.event
            sys.stderr.write(f"{name}: {progress.event} ({human_bytes(progress.total)})\n")
