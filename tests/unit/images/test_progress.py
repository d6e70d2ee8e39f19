"""What a transfer tells: a tree, changes of state in order, numbers at a bounded rate."""

from __future__ import annotations

import asyncio

import pytest

from supervisord.aio.groups import task_group
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.progress import COMPLETE, DOWNLOADING, Progress, Tracker

_MANIFEST = Descriptor(media.MANIFEST, "sha256:" + "1" * 64, 100)
_LAYER = Descriptor(media.LAYER, "sha256:" + "2" * 64, 1000)


class _Listener:
    def __init__(self) -> None:
        self.told: list[Progress] = []

    async def __call__(self, progress: Progress) -> None:
        self.told.append(progress)


async def test_a_tree_in_order() -> None:
    listener = _Listener()
    tracker = Tracker("name", listener)
    async with task_group() as group:
        group.spawn(tracker.run(), "progress")
        tracker.say("Resolving")
        tracker.children(None, [_MANIFEST])
        tracker.set(COMPLETE, _MANIFEST)
        tracker.children(_MANIFEST, [_LAYER])
        for number in range(1, 1001):
            tracker.set(DOWNLOADING, _LAYER, number)
        await asyncio.sleep(0)
        tracker.set(COMPLETE, _LAYER)
        tracker.close()
    told = [(one.event, one.progress) for one in listener.told]
    assert told[0] == ("Resolving", 0)
    layer = [one for one in listener.told if one.name == f"layer-{_LAYER.digest}"]
    assert [one.event for one in layer] == ["waiting", DOWNLOADING, COMPLETE]
    assert [one.progress for one in layer] == [0, 1000, 1000]
    assert list(layer[0].parents) == [f"manifest-{_MANIFEST.digest}"]
    manifest = next(one for one in listener.told if one.name.startswith("manifest"))
    assert list(manifest.parents) == ["name"]


async def test_numbers_are_told_now_and_then() -> None:
    listener = _Listener()
    tracker = Tracker("name", listener)
    async with task_group() as group:
        group.spawn(tracker.run(), "progress")
        for number in range(300):
            tracker.set(DOWNLOADING, _LAYER, number)
            await asyncio.sleep(0.001)
        tracker.close()
    assert 2 <= len(listener.told) <= 30
    assert listener.told[-1].progress == 299


async def test_nobody_listens() -> None:
    tracker = Tracker("name", None)
    tracker.children(None, [_LAYER])
    tracker.set(COMPLETE, _LAYER)
    await tracker.run()


async def test_the_first_failure_of_a_group_is_raised_as_it_is() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError, match="one") as caught:
        async with task_group() as group:
            group.spawn(fail(KeyError("one")), "one")
            group.spawn(fail(ValueError("two")), "two")
    assert isinstance(caught.value.__cause__, BaseExceptionGroup)
