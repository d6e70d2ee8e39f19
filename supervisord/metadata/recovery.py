"""Finds after a start what a crash has left: files and backend snapshots without a row.

Runs once, in the background, while the daemon serves already. It touches only what earlier
processes made: files and snapshots with numbers that this process has not given out, and blobs
under the lock that also guards their appearance.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from supervisord.content.blobs import BlobFiles
from supervisord.contracts.errors import Error, FailedPrecondition, NotFound, Unimplemented
from supervisord.contracts.snapshots import Kind, Snapshotter, is_remote
from supervisord.sqlite.database import Database

from . import snapshot_rows
from .removals import Removals
from .sequences import Sequence

log = logging.getLogger(__name__)

_PAUSE_EVERY = 500


async def recover_content(
    database: Database, files: BlobFiles, removals: Removals, numbers: Sequence
) -> int:
    """Removes ingests and blobs that no row knows; answers how many."""
    known = _first_column(database, "SELECT file FROM ingests")
    on_disk = await asyncio.to_thread(lambda: list(files.all_ingests()))
    removed = 0
    for number in on_disk:
        if number not in known and number < numbers.first:
            await asyncio.to_thread(files.remove_ingest, number)
            removed += 1
    rows = _first_column(database, "SELECT digest FROM blobs")
    digests = await asyncio.to_thread(lambda: list(files.all_blobs()))
    for index, digest in enumerate(digests):
        if digest not in rows:
            await removals.remove_blob(digest)
            removed += 1
        if index % _PAUSE_EVERY == 0:
            await asyncio.sleep(0)
    return removed


def _first_column(database: Database, query: str) -> set[Any]:
    """Read to the end: a statement that is left open would be outside of what ``read`` answers
    for."""
    return {row[0] for row in database.read(lambda c: c.execute(query).fetchall())}


async def recover_snapshots(
    database: Database, name: str, backend: Snapshotter, numbers: Sequence
) -> int:
    """Removes snapshots of the backend that no row knows; answers how many."""
    rows = database.read(
        lambda c: c.execute(
            "SELECT backend FROM snapshots WHERE snapshotter = ?", (name,)
        ).fetchall()
    )
    known = {key for (key,) in rows}
    present = {info.name: info async for info in backend.walk()}
    # The numbers of rows whose snapshot is gone: a commit may have been cut off before its row.
    unfinished = {snapshot_rows.number(key) for key in known - present.keys()}
    for key in known - present.keys():
        log.warning("%s: the backend has lost the snapshot %r", name, key)
    orphans = []
    for info in present.values():
        number = snapshot_rows.number(info.name)
        if info.name in known or number is None or number >= numbers.first:
            continue
        if info.kind is Kind.COMMITTED and number in unfinished:
            log.warning("%s: %r was committed, but not recorded", name, info.name)
            continue
        orphans.append(info)
    return await _remove_all(name, backend, {info.name for info in orphans})


async def _remove_all(name: str, backend: Snapshotter, keys: set[str]) -> int:
    """Removes children before their parents, by trying again while that helps."""
    removed = 0
    while keys:
        left: set[str] = set()
        for key in keys:
            try:
                await backend.remove(key)
                removed += 1
            except NotFound:
                continue
            except FailedPrecondition:
                left.add(key)
            except (Error, OSError) as error:
                log.warning("%s: could not remove the orphan %r: %s", name, key, error)
        if len(left) == len(keys):
            log.warning("%s: %d orphans have children that are in use", name, len(left))
            break
        keys = left
    return removed


async def _recovered(
    database: Database, name: str, backend: Snapshotter, numbers: Sequence
) -> bool:
    """Whether a snapshotter could be asked."""
    try:
        removed = await recover_snapshots(database, name, backend, numbers)
    except (Error, OSError) as error:
        level = logging.WARNING if is_remote(backend) else logging.ERROR
        log.log(level, "snapshotter %s was not checked for orphans: %s", name, error)
        return False
    if removed:
        log.info("recovery removed %d orphans of snapshotter %s", removed, name)
    return True


async def recover_remote(
    database: Database, numbers: Sequence, snapshotters: Mapping[str, Snapshotter]
) -> dict[str, Snapshotter]:
    """Those in other processes, all at once; answers the ones that could not be asked."""
    asked = await asyncio.gather(
        *(_recovered(database, name, backend, numbers) for name, backend in snapshotters.items())
    )
    there = zip(snapshotters.items(), asked, strict=True)
    return {name: backend for (name, backend), done in there if not done}


async def _cleaned(name: str, backend: Snapshotter) -> None:
    """What a snapshotter that was killed had half made or half removed: no row tells of it."""
    try:
        await backend.cleanup()
    except Unimplemented:
        return
    except (Error, OSError) as error:
        log.error("snapshotter %s was not cleaned up: %s", name, error)


async def recover_all(
    database: Database,
    files: BlobFiles,
    removals: Removals,
    numbers: Sequence,
    snapshotters: Mapping[str, Snapshotter],
) -> None:
    """Everything above, then the removals that an earlier process did not get to. A part that
    fails is reported and does not stop the others."""
    removed = 0
    try:
        removed += await recover_content(database, files, removals, numbers)
    except (Error, OSError) as error:
        log.error("content was not checked for orphans: %s", error)
    here = {name: each for name, each in snapshotters.items() if not is_remote(each)}
    for name, backend in here.items():  # the others may be away, or hang
        await _recovered(database, name, backend, numbers)
    await removals.drain(cleanup=True)
    for name, backend in here.items():
        await _cleaned(name, backend)
    if removed:
        log.info("recovery removed %d orphans", removed)
