"""Checks blobs and ingests: files against rows, sizes, digests.

A damaged blob is moved into the folder ``quarantine`` and loses its rows, so that whoever needs it
fetches it again. A sound blob without a row gets one, under the lease ``recovered``.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from protos.containerd.events import events_pb2
from supervisord.contracts.checks import Finding, Options, Progress, Report

from . import content_rows as rows
from . import references
from .content import Parts
from .removals import note_ingest, noted
from .sequences import Sequence as Numbers

if TYPE_CHECKING:
    from .check import Recovered

_AT_ONCE = 3
_EVERY = 64
_MANIFEST = 8 << 20
_FETCH = "the blob is set aside and its record dropped: it can be fetched again"
_DROP = "its record is dropped: it can be fetched again"

Owners = list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file: its size, None if it is not there, and whether its bytes are those of its digest
    (None: not looked at). ``error`` says why it could not be read."""

    size: int | None
    sound: bool | None = None
    error: str = ""


class BlobCheck:
    """All blobs of all namespaces."""

    def __init__(self, parts: Parts, numbers: Numbers, recovered: Recovered) -> None:
        self._parts = parts
        self._numbers = numbers
        self._recovered = recovered

    async def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """Blobs in order of their digests, then ingests."""
        owned = self._all_owners()
        present = await asyncio.to_thread(lambda: set(self._parts.files.all_blobs()))
        digests = sorted(owned.keys() | present)
        done = size = 0
        async for digest, seen in self._looked_at(digests, options):
            if self._wrong(digest, seen, owned.get(digest, [])):
                # Perhaps it was only being written or deleted just now: again, and alone.
                async with self._parts.blob_locks.hold(digest):
                    finding = await self._judged(digest, options)
                if finding is not None:
                    yield finding
            done += 1
            size += (seen.size or 0) if seen.sound is not None else 0
            if done % _EVERY == 0 or seen.sound is not None or done == len(digests):
                yield Progress("blobs", done, len(digests), size)
        async for report in self._ingests(options):
            yield report

    # Looking -------------------------------------------------------------------------------

    async def _looked_at(
        self, digests: Iterable[str], options: Options
    ) -> AsyncIterator[tuple[str, _Seen]]:
        """A few at a time: hashing leaves the interpreter alone."""
        loop = asyncio.get_running_loop()
        waiting: deque[tuple[str, asyncio.Future[_Seen]]] = deque()
        try:
            for digest in digests:
                look = partial(self._look, digest, read=not options.quick)
                waiting.append((digest, loop.run_in_executor(self._parts.executor, look)))
                if len(waiting) == _AT_ONCE:
                    first, future = waiting.popleft()
                    yield first, await future
            while waiting:
                first, future = waiting.popleft()
                yield first, await future
        finally:
            for _, future in waiting:
                future.cancel()

    def _look(self, digest: str, *, read: bool) -> _Seen:
        size = self._parts.files.blob_size(digest)
        if size is None or not read:
            return _Seen(size)
        try:
            return _Seen(size, self._parts.files.actual_digest(digest) == digest)
        except FileNotFoundError:
            return _Seen(None)
        except OSError as error:
            return _Seen(size, False, error.strerror or str(error))

    def _all_owners(self) -> dict[str, Owners]:
        def read(connection: sqlite3.Connection) -> dict[str, Owners]:
            found: dict[str, Owners] = {}
            for digest, namespace, size in connection.execute(
                "SELECT digest, namespace, size FROM blobs"
            ):
                found.setdefault(digest, []).append((namespace, size))
            return found

        return self._parts.commits.read(read)

    def _owners(self, digest: str) -> Owners:
        return self._parts.commits.read(
            lambda c: c.execute(
                "SELECT namespace, size FROM blobs WHERE digest = ?", (digest,)
            ).fetchall()
        )

    @staticmethod
    def _wrong(digest: str, seen: _Seen, owners: Owners) -> bool:
        return (
            not owners
            or seen.size is None
            or seen.sound is False
            or any(size != seen.size for _, size in owners)
        )

    # Judging -------------------------------------------------------------------------------

    async def _judged(self, digest: str, options: Options) -> Finding | None:
        """What is wrong with a blob, put right if that is wanted. Its lock is held."""
        owners = self._owners(digest)
        # Whatever is to be done about it, its digest decides.
        seen = await asyncio.to_thread(self._look, digest, read=options.repair or not options.quick)
        names = ", ".join(sorted(namespace for namespace, _ in owners))
        if seen.size is None:
            if not owners:
                return None
            if options.repair:
                await self._drop(digest, owners)
            return Finding(
                "blob", digest, "missing", "there is no file for it", names, _DROP, options.repair
            )
        if seen.sound is False:
            detail = f"cannot be read: {seen.error}" if seen.error else "does not have its digest"
            if options.repair:
                await asyncio.to_thread(self._parts.files.quarantine, digest)
                await self._drop(digest, owners)
            problem = "unreadable" if seen.error else "damaged"
            return Finding("blob", digest, problem, detail, names, _FETCH, options.repair)
        if not owners:
            return await self._orphan(digest, seen.size, options)
        sizes = [size for _, size in owners if size != seen.size]
        if not sizes:
            return None
        if options.repair:
            await self._correct(digest, seen.size)
        detail = f"has {seen.size} bytes, and {sizes[0]} by its record"
        remedy = "the record is corrected where the digest is right; else it is set aside"
        return Finding("blob", digest, "size", detail, names, remedy, options.repair)

    async def _orphan(self, digest: str, size: int, options: Options) -> Finding | None:
        if self._parts.commits.read(partial(noted, kind=references.CONTENT, key=digest)):
            return None
        if options.repair:
            scope = await self._recovered.hold(options.namespace)
            labels = await asyncio.to_thread(self._children, digest, size)
            node = references.Node(references.CONTENT, digest)

            def adopt(connection: sqlite3.Connection) -> None:
                rows.insert(connection, scope.namespace, digest, size, labels)
                references.hold(connection, scope, node)

            await self._parts.commits.write(adopt)
        remedy = f"it gets one in the namespace {options.namespace}, held by the lease recovered"
        detail = f"{size} bytes without a record"
        return Finding("blob", digest, "orphan", detail, "", remedy, options.repair)

    def _children(self, digest: str, size: int) -> dict[str, str]:
        """The labels by which a manifest or an index keeps what it names."""
        path = self._parts.files.blob_path(digest)
        try:
            with path.open("rb") as file:
                if size > _MANIFEST or file.read(1) != b"{":
                    return {}
                document = json.loads(b"{" + file.read())
        except (OSError, ValueError, RecursionError):
            return {}
        return child_labels(document)

    async def _drop(self, digest: str, owners: Owners) -> None:
        def forget(connection: sqlite3.Connection) -> None:
            for namespace, _ in owners:
                rows.delete(connection, namespace, digest)

        await self._parts.commits.write(forget, deleted=True)
        for namespace, _ in owners:
            event = events_pb2.ContentDelete(digest=digest)
            self._parts.commits.publish(namespace, "/content/delete", event)

    async def _correct(self, digest: str, size: int) -> None:
        await self._parts.commits.write(
            lambda c: c.execute("UPDATE blobs SET size = ? WHERE digest = ?", (size, digest))
        )

    # Ingests -------------------------------------------------------------------------------

    async def _ingests(self, options: Options) -> AsyncGenerator[Report, None]:
        """A file without a row is rubbish; a row whose blob of another namespace is gone can never
        be committed."""
        files = self._parts.files
        on_disk = await asyncio.to_thread(lambda: sorted(files.all_ingests()))
        known = {
            number
            for (number,) in self._parts.commits.read(
                lambda c: c.execute("SELECT file FROM ingests").fetchall()
            )
        }
        for number in on_disk:
            if number in known or number >= self._numbers.first:
                continue
            going = partial(noted, kind=references.INGESTS, key=str(number))
            if self._parts.commits.read(going):
                continue
            if options.repair:
                await asyncio.to_thread(files.remove_ingest, number)
            yield Finding(
                "ingest", str(number), "orphan", "a file without a record", "",
                "it is removed", options.repair,
            )  # fmt: skip
        for namespace, ref, number, digest in self._parts.commits.read(
            lambda c: c.execute(
                "SELECT namespace, ref, file, expected FROM ingests WHERE expected != ''"
            ).fetchall()
        ):
            if files.blob_size(digest) is not None:
                continue
            if options.repair:
                await self._parts.commits.write(
                    partial(_forget_ingest, namespace=namespace, ref=ref, number=number),
                    deleted=True,
                )
            yield Finding(
                "ingest", ref, "missing", f"stands for {digest}, which is not there", namespace,
                "it is dropped", options.repair,
            )  # fmt: skip


def _forget_ingest(connection: sqlite3.Connection, namespace: str, ref: str, number: int) -> None:
    rows.delete_ingest(connection, namespace, ref)
    note_ingest(connection, number)


def child_labels(document: Mapping[str, Any]) -> dict[str, str]:
    """Labels as clients give them to manifests: the config, the layers, the manifests of an
    index."""
    if not isinstance(document, dict):
        return {}
    prefix = "containerd.io/gc.ref.content"
    labels: dict[str, str] = {}
    config = document.get("config")
    if isinstance(config, dict) and _is_digest(config.get("digest")):
        labels[f"{prefix}.config"] = config["digest"]
    for field, letter in (("layers", "l"), ("manifests", "m")):
        children = document.get(field)
        for number, child in enumerate(children if isinstance(children, list) else ()):
            if isinstance(child, dict) and _is_digest(child.get("digest")):
                labels[f"{prefix}.{letter}.{number}"] = child["digest"]
    return labels


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and value.startswith("sha") and ":" in value
