"""Content: immutable blobs addressed by digest, and resumable ingests addressed by ref.

An ingest begins with ``writer(ref)``. While a writer is open its ref is locked: another open of
the same ref is Unavailable. A writer that is closed without commit leaves its bytes, and a later
``writer(ref)`` goes on from there (``offset``), also after a restart. ``commit`` verifies size
and digest, makes the blob durable (data, rename, folder), then the row, then ends the ingest.
A mismatch is FailedPrecondition and keeps the ingest; a digest that the namespace has already is
AlreadyExists.

Blobs are shared by all namespaces on disk, but each namespace sees only those it has a row for.
With the policy ``shared`` (the default), a writer whose ``expected`` digest some other namespace
has opens with all its bytes there (``offset`` is the size), and needs only the commit; a write or
truncate copies them first. With ``isolated`` the bytes must be brought again, unless the
namespace that has them is labelled ``containerd.io/namespace.shareable=true``.

An ingest without a lease is garbage 24 hours after it was last opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .scope import Scope


@dataclass(frozen=True, slots=True)
class Info:
    """A blob as one namespace sees it; ``size`` in bytes, times in nanoseconds."""

    digest: str
    size: int = 0
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """An ingest: how far it is (``offset``), and what is expected of it."""

    ref: str
    offset: int = 0
    total: int = 0
    expected: str = ""
    started_at: int = 0
    updated_at: int = 0


class Reader(Protocol):
    """An open blob, held by a descriptor: it stays readable if the blob is deleted meanwhile."""

    size: int

    def fileno(self) -> int:
        """The descriptor, for those who pass it on (unpack workers) or use sendfile."""
        ...

    async def read(self, offset: int, size: int, head: bytes = b"") -> bytes:
        """Up to ``size`` bytes at ``offset``; empty at the end. ``head`` is put before them, which
        here costs no further copy."""
        ...

    def close(self) -> None: ...


class Writer(Protocol):
    """An open ingest. Exactly one exists per ref; close it to unlock the ref."""

    @property
    def status(self) -> Status: ...

    def digest(self) -> str:
        """The digest of all bytes so far. Cheap."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Appends; returns when the bytes are hashed and on their way to the disk: they must not
        change any more. What the disk refuses is raised by the next call.

        Raises ResourceExhausted on a full disk, with what was written kept (``status.offset``);
        FailedPrecondition once closed."""
        ...

    async def settle(self) -> None:
        """Returns when all bytes so far are in the file: a daemon that is killed now has them
        when it is started again. Raises what the disk refuses, as ``write`` does."""
        ...

    async def truncate(self, size: int) -> None:
        """Drops all bytes from ``size`` on. Raises FailedPrecondition beyond the end."""
        ...

    async def commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        """Ends the ingest (``size`` 0 and ``expected`` "" are not checked).

        Raises FailedPrecondition on a mismatch (the ingest stays), AlreadyExists (it is dropped),
        InvalidArgument for labels."""
        ...

    async def close(self) -> None:
        """Unlocks the ref. What was not committed is durable, and stays to be resumed."""
        ...


class ContentStore(Protocol):
    """Namespaced content with labels. Publishes /content/create and /content/delete."""

    async def info(self, scope: Scope, digest: str) -> Info:
        """Raises NotFound."""
        ...

    async def update(self, scope: Scope, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Changes labels (``labels``, ``labels.KEY``). Raises NotFound, InvalidArgument."""
        ...

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """All blobs that match, in order of digest."""
        ...

    async def delete(self, scope: Scope, digest: str) -> None:
        """Removes it from this namespace; the file goes when no namespace has it."""
        ...

    async def reader(self, scope: Scope, digest: str) -> Reader:
        """Opens a blob. Raises NotFound, DataLoss if its file has another size."""
        ...

    async def read_blob(self, scope: Scope, digest: str, limit: int = 8 << 20) -> bytes:
        """A whole small blob (manifest, config). Raises NotFound, ResourceExhausted over limit."""
        ...

    async def writer(
        self, scope: Scope, ref: str, *, total: int = 0, expected: str = "", media_type: str = ""
    ) -> Writer:
        """Opens or resumes an ingest; one that was begun with another ``total`` starts over.

        The event of the commit tells ``media_type``, which a client of the wire cannot give.
        Raises InvalidArgument, Unavailable (locked), AlreadyExists (``expected`` is here),
        ResourceExhausted (full disk)."""
        ...

    async def status(self, scope: Scope, ref: str) -> Status:
        """Raises NotFound."""
        ...

    async def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Status]:
        """Ingests of this namespace that match (filters on ``ref``)."""
        ...

    async def abort(self, scope: Scope, ref: str) -> None:
        """Drops an ingest and its bytes; a writer that has it open is closed. Raises NotFound."""
        ...
