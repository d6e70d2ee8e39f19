"""Names are free text of the caller's choice, and some callers choose badly."""

from __future__ import annotations

import pytest

from supervisord.contracts.errors import Error, NotFound
from supervisord.contracts.snapshots import Kind, Snapshotter

from .base import LABELS, Base

ODD_NAMES = (
    " a name  with spaces ",
    "../../../etc/passwd",
    "/",
    "default/7/sha256:0123",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "größe-日本-\N{SNOWMAN}",
    "two\nlines\tand a tab",
    'it\'s "quoted" and \\back',
    "x'; DROP TABLE snapshots; --%_*?",
    "-o,upperdir=/etc:lowerdir=/",
    "n" * 1000,
)


@pytest.mark.asyncio
class Names(Base):
    async def test_names_are_free_text(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "other")
        for name in ODD_NAMES:
            await snapshotter.prepare(name, "other", LABELS)
            await snapshotter.commit(f"{name}-base", name, LABELS)
            await snapshotter.prepare(name, f"{name}-base", LABELS)
            info = await snapshotter.stat(name)
            assert (info.name, info.parent, info.kind) == (name, f"{name}-base", Kind.ACTIVE)
            assert await snapshotter.mounts(name)
            found = {each.name: each.parent async for each in snapshotter.walk()}
            assert found == {"other": "", f"{name}-base": "other", name: f"{name}-base"}
            await snapshotter.remove(name)
            await snapshotter.remove(f"{name}-base")
            with pytest.raises(NotFound):
                await snapshotter.stat(name)

    async def test_names_differ_by_a_letter(self, snapshotter: Snapshotter) -> None:
        names = ["a", "A", "a ", "á", "a\u0301", "a/", "a/."]
        for name in names:
            await snapshotter.prepare(name, "", LABELS)
        assert {info.name async for info in snapshotter.walk()} == set(names)

    async def test_an_empty_name_is_none(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("key", "", LABELS)
        for refused in (
            snapshotter.prepare("", "", LABELS),
            snapshotter.view("", "", LABELS),
            snapshotter.commit("", "key", LABELS),
            snapshotter.stat(""),
            snapshotter.mounts(""),
            snapshotter.usage(""),
            snapshotter.remove(""),
        ):
            with pytest.raises(Error):
                await refused
        assert [info.name async for info in snapshotter.walk()] == ["key"]

    async def test_malformed_filters_are_refused(self, snapshotter: Snapshotter) -> None:
        for text in ('name=="', "kind=", "==x"):
            with pytest.raises(Error):
                [info async for info in snapshotter.walk((text,))]
