"""The power fails at any moment: whatever the disk has kept then, the stores open on it, have what
was answered, and nothing dangles.

A program works with the stores under strace; its calls are replayed into a model of what the file
system promises (``power``), and the states that it allows are laid down and opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord.contracts.checks import Finding, Options
from tests.conformance.daemons import REPOSITORY

from . import power
from .programs import storing

SHARES = 2
STRIDE = 1 if os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS") else 9
SYNCS = ("fsync", "fdatasync", "syncfs")
UNREMARKABLE = ("openat", "pwrite64", "write", "ftruncate", "fallocate")
"""Behind these no more is durable than before: what they do is among what is torn later."""

LEAST = 20

pytestmark = pytest.mark.timeout(300)


def moments(events: list[power.Event], root: Path, notes: Path) -> Any:
    """Every state that could be left, with what had been noted last by then."""
    disk = power.Disk(root)
    chance = random.Random(7)  # noqa: S311 - the same each time
    last: dict[str, Any] = {"done": {}}
    seen: set[str] = set()
    for number, event in enumerate(events):
        if any(path == str(notes) for _, path in event.places) and event.name == "write":
            last = json.loads(event.strings[0])
            continue
        if not disk.replay(event) or event.name in UNREMARKABLE:
            continue
        kinds = ["least"] if event.name in SYNCS or STRIDE == 1 else []
        # The least that may be left is where things go wrong: of the others a sample.
        if number % STRIDE == 0:
            kinds += ["names", "torn", "all"]
        for kind in kinds:
            state = disk.state(kind, chance)
            key = state.identity() + json.dumps(last)
            if key not in seen:
                seen.add(key)
                yield event, state, last


def expected(last: dict[str, Any], kind: str) -> tuple[set[str], set[str]]:
    """What must be there, and what may."""
    if "done" in last:
        there = set(last["done"].get(kind, []))
        return there, there
    before, after = set(last["from"][kind]), set(last["begins"][kind])
    return before & after, before | after


async def examine(root: Path, last: dict[str, Any]) -> None:
    """Asserts all that must hold of a state."""
    metadata, snapshotters = await storing.opened(root)
    try:
        await metadata.recover()
        blobs = {info.digest async for info in metadata.content.walk(storing.SCOPE)}
        must, may = expected(last, "blobs")
        assert must <= blobs <= may, ("blobs", must - blobs, blobs - may)
        for digest in blobs:
            data = await metadata.content.read_blob(storing.SCOPE, digest)
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
        images = {image.name for image in metadata.images.list("power")}
        must, may = expected(last, "images")
        assert must <= images <= may, ("images", images)
        for kind in ("overlayfs", "native"):
            await _snapshots(metadata, kind, last)
        found = [
            each
            async for each in metadata.checker.check(Options())
            if isinstance(each, Finding) and each.problem != "unfinished"
        ]
        assert found == []
    finally:
        await metadata.close()
        for snapshotter in snapshotters:
            await snapshotter.close()


async def _snapshots(metadata: Any, kind: str, last: dict[str, Any]) -> None:
    store = metadata.snapshots[kind]
    names = {info.name async for info in store.walk(storing.SCOPE)}
    must, may = expected(last, kind)
    assert must <= names <= may | {"a"}, (kind, must - names, names - may)
    if kind == "native" and "rw" in names:
        (mount,) = await store.mounts(storing.SCOPE, "rw")
        assert Path(mount.source, "folder/file").read_bytes() == storing.FILE
    if "layer" in names:
        await store.prepare(storing.SCOPE, "look", "layer", storing.ROOT)
        await store.view(storing.SCOPE, "view", "layer", storing.ROOT)
        (mount,) = await store.mounts(storing.SCOPE, "view")
        assert Path(mount.source, "folder/file").read_bytes() == storing.FILE
        for key in ("look", "view"):
            await store.remove(storing.SCOPE, key)
        await metadata._parts.removals.drain()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: the model knows what was synced, and no disk need do it."""
    with tempfile.TemporaryDirectory(prefix="power-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.blocks("it lays down files, and reads traces")
@pytest.mark.parametrize("share", range(SHARES))
async def test_power_loss(memory: Path, share: int) -> None:
    root, notes, record = memory / "root", memory / "notes", memory / "record"
    root.mkdir()
    program = [sys.executable, storing.__file__, str(root), str(notes)]
    events = power.recorded(program, record, cwd=REPOSITORY)
    record.unlink()
    wrong: list[str] = []
    count = 0
    for number, (event, state, last) in enumerate(moments(events, root, notes)):
        if number % SHARES != share:
            continue
        count += 1
        place = memory / "state"
        state.lay(place)
        try:
            await examine(place, last)
        except Exception as error:
            where = event.strings[0][-60:] if event.name != "pwrite64" and event.strings else ""
            wrong.append(f"{state.kind} after {event.name} {where!r} {event.places}: {error!r}")
        shutil.rmtree(place)

    assert count > LEAST
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:40])
