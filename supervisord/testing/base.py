"""How the tests of the suite get their snapshotter, and what they share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
import pytest_asyncio

from supervisord.contracts.snapshots import Snapshotter

from . import ways as all_ways
from .mounting import mounted_aside
from .trees import Change, contents

Found = TypeVar("Found")

LABELS: Mapping[str, str] = {"containerd.io/gc.root": "2020-01-01T00:00:00Z"}
"""Keeps a snapshot from collection, where there is a collector."""


class Base:
    """``open`` is the one thing that a subclass must say."""

    ways: ClassVar[Sequence[str]] = tuple(all_ways.WAYS)
    """How the tests reach the snapshotter, by name; see ``ways``."""

    layer_ways: ClassVar[Sequence[str]] = ("direct", "daemon")
    """Those of the tests that only look through the mounts, which are many."""

    renames_lower_directories: ClassVar[bool] = True
    """Whether a directory of a parent can be renamed (overlayfs answers EXDEV)."""

    rebases: ClassVar[bool] = False
    """Whether a commit may give a parent to a snapshot that was prepared without one."""

    keeps_root_mode: ClassVar[bool] = True
    """Whether the mode of the root folder is the parent's (containerd's overlayfs forgets it)."""

    commit_keeps_usage: ClassVar[bool] = True
    """Whether a committed snapshot takes what it took when it was active (an image does not)."""

    many_layers: ClassVar[int] = 128
    """How many layers one snapshot must be able to stand on."""

    _numbers = itertools.count(1)

    async def open(self, root: Path) -> Snapshotter:
        """The snapshotter over the folder ``root``, which may be empty, missing, or what an earlier
        one has left there."""
        raise NotImplementedError("a suite says how its snapshotter is opened")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test once for each way."""
        if "way" in metafunc.fixturenames:
            looks = metafunc.function.__qualname__.startswith("Layers.")
            ways = [way for way in self.ways if not looks or way in self.layer_ways]
            metafunc.parametrize("way", ways)

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """The folder for ``open``; override it for one on a disk of its own."""
        return tmp_path / "root"

    @pytest_asyncio.fixture
    async def snapshotter(self, way: str, root: Path, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        async with AsyncExitStack() as stack:
            backend = await self.open(root)
            stack.push_async_callback(backend.close)
            reach = all_ways.WAYS[way](backend, tmp_path / "above")
            yield await stack.enter_async_context(reach)

    # Tools ---------------------------------------------------------------------------------

    async def check_layers(
        self, snapshotter: Snapshotter, tmp_path: Path, *changes: Change
    ) -> list[str]:
        """Commits each change on top of the last, and compares each with a flat directory."""
        flat = tmp_path / f"flat-{next(self._numbers)}"
        flat.mkdir()
        names: list[str] = []
        for change in changes:
            parent = names[-1] if names else ""
            names.append(await self.commit_change(snapshotter, tmp_path, parent, change))
            await aside(change, flat)
            view = f"{names[-1]}-view"
            mounts = await snapshotter.view(view, names[-1], LABELS)
            async with mounted_aside(mounts, tmp_path / "view") as root:
                assert await aside(contents, root) == await aside(contents, flat)
            await snapshotter.remove(view)
        return names

    async def commit_change(
        self, snapshotter: Snapshotter, tmp_path: Path, parent: str, change: Change
    ) -> str:
        """A new committed snapshot: the parent, changed."""
        name = f"layer-{next(self._numbers)}"
        mounts = await snapshotter.prepare(f"{name}-key", parent, LABELS)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            await aside(change, root)
        await snapshotter.commit(name, f"{name}-key", LABELS)
        return name

    async def commit_empty(self, snapshotter: Snapshotter, name: str, parent: str = "") -> None:
        """A committed snapshot without a change."""
        await snapshotter.prepare(f"{name}-key", parent, LABELS)
        await snapshotter.commit(name, f"{name}-key", LABELS)

    async def make_one_of_each(self, snapshotter: Snapshotter) -> None:
        """c2 on c1, committed; a1 active and v1 view of c2; a2 and v2 without a parent."""
        await self.commit_empty(snapshotter, "c1")
        await self.commit_empty(snapshotter, "c2", "c1")
        await snapshotter.prepare("a1", "c2", LABELS)
        await snapshotter.prepare("a2", "", LABELS)
        await snapshotter.view("v1", "c2", LABELS)
        await snapshotter.view("v2", "", LABELS)


async def aside(work: Callable[[Path], Found], root: Path) -> Found:
    """Does in a thread what would hold up the loop, on which a server may be running."""
    return await asyncio.to_thread(work, root)
