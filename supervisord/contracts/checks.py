"""Checks of what is stored: do records, files and snapshots fit each other, and what they say?

A check goes over everything once while others go on working. It tells what it finds wrong as it
finds it, and with ``repair`` puts right what can be put right: what is damaged is set aside or
dropped, so that it can be made again; what has lost its record gets one. It never takes away the
only copy of anything: damaged data is set aside, not deleted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

RECOVERED = "recovered"
"""The id of the lease that holds what a repair has given records to, in its namespace."""


@dataclass(frozen=True, slots=True)
class Options:
    """``quick`` compares sizes and names and reads no data; ``namespace`` is that of blobs which
    have lost their record."""

    quick: bool = False
    repair: bool = False
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    ``kind`` is what it is about (``blob``, ``ingest``, ``snapshot``, ``folder``, ``record``,
    ``edge``, ``database``), ``problem`` one word for it (``missing``, ``damaged``, ``size``,
    ``orphan``, ``parent``, ``unreadable``, ``unfinished``), ``detail`` a line. ``remedy`` says what
    a repair does about it, or what a person can do; ``repaired`` that it is done."""

    kind: str
    key: str
    problem: str
    detail: str
    namespace: str = ""
    remedy: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` things of a ``part`` are checked, and ``size`` bytes of them read."""

    part: str
    done: int
    total: int
    size: int = 0


Report = Finding | Progress


@dataclass(frozen=True, slots=True)
class CopiedDatabase:
    """One database of a backup: where it belongs, and where its copy is for now."""

    path: Path
    copy: Path


class Checker(Protocol):
    """Goes over everything that is stored."""

    def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """See above. Raises Unavailable while another check repairs."""
        ...

    async def backup(self, folder: Path) -> Sequence[CopiedDatabase]:
        """Copies all databases, as they are at one moment, into files of ``folder``.

        Raises ResourceExhausted, Unknown."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A snapshotter that can check what it keeps beside what its contract tells."""

    def databases(self) -> Sequence[Path]:
        """Its database files, for backups and checks."""
        ...

    def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """Compares its index with its folders."""
        ...
