"""A daemon whose effects are counted, and that ends at the one which the test chooses."""

from __future__ import annotations

import mmap
import os
import struct

from tests.conformance.daemons import Supervisord

from .programs import effects

_PROGRAM = os.path.abspath(effects.__file__)


class Counted(Supervisord):
    """``tests.faults.programs.effects`` around the daemon, its zygotes and their shims."""

    def __init__(self) -> None:
        super().__init__()
        page = self.base / "effects"
        page.write_bytes(bytes(effects.SIZE))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), effects.SIZE)

    def command(self) -> list[str]:
        words = super().command()
        at = words.index("-m")
        return [words[0], _PROGRAM, str(self.base / "effects"), *words[at:]]

    def order(self, kind: str, number: int) -> None:
        """Processes of the kind end at their effect of this number from now on; with -1 they only
        count, and with 0 they do not even that."""
        at = effects.KINDS.index(kind) * effects.SLOT.size
        struct.pack_into("q", self._page, effects.TEXT - 8, 0)
        effects.SLOT.pack_into(self._page, at, number, 0)

    def count(self, kind: str) -> int:
        """How many effects there have been since the order."""
        at = effects.KINDS.index(kind) * effects.SLOT.size
        return int(effects.SLOT.unpack_from(self._page, at)[1])

    def effects(self) -> list[str]:
        """The names of all that were counted since the order."""
        (length,) = struct.unpack_from("q", self._page, effects.TEXT - 8)
        text = self._page[effects.TEXT : effects.TEXT + length]
        return text.decode(errors="replace").splitlines()

    def close(self) -> None:
        super().close()
        self._page.close()
