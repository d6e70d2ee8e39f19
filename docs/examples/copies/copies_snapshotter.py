"""A snapshotter in fifty lines, not counting its imports: each snapshot is a folder with a copy of
its parent's files.

The base class keeps names, parents, labels and usage in a database and removes folders; what is
particular is how a folder is made, and how it is mounted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from snapshotters import index
from snapshotters.base import DirectorySnapshotter
from snapshotters.plugin import ROOT_PATH_HELP, SNAPSHOTTER, root_of, take
from supervisord.contracts.errors import Unknown
from supervisord.contracts.plugins import PluginContext, Registration
from supervisord.contracts.snapshots import Kind, Mount
from supervisord.sqlite.database import Database


class CopiesSnapshotter(DirectorySnapshotter):
    reflink = "auto"

    @classmethod
    async def open(cls, root: Path, reflink: str = "auto") -> CopiesSnapshotter:
        await asyncio.to_thread((root / "snapshots").mkdir, parents=True, exist_ok=True)
        opened = cls(root, await Database.open(root / "metadata.sqlite", index.MIGRATIONS))
        opened.reflink = reflink
        return opened

    def _tree(self, id: int) -> str:
        return self._path(id)

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> index.Chain:
        new = partial(index.parent_of_new, key=key, parent=parent)  # refuses what may not be made
        id = self._take_id()
        try:
            parents = self._database.read(new)
            if parents:
                words = ["cp", "-a", f"--reflink={self.reflink}", self._tree(parents[0])]
            else:
                words = ["mkdir", "-m", "755"]
            await self._run(*words, self._tree(id))
            return await self._database.write(
                lambda c: index.insert(c, id, kind, key, new(c), labels)
            )
        except BaseException:
            await self._drop(id)
            raise
        finally:
            self._making.discard(id)

    async def _run(self, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        _, told = await process.communicate()
        if process.returncode:
            raise Unknown(told.decode(errors="replace").strip())

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        access = "ro" if chain.kind is Kind.VIEW else "rw"
        return [Mount("bind", self._tree(chain.id), ("rbind", access))]


async def start(context: PluginContext) -> Any:
    root = root_of(context)
    take(context, root)
    snapshotter = await CopiesSnapshotter.open(root, context.config["reflink"])
    context.on_close(snapshotter.close)
    return snapshotter


COPIES = Registration(
    SNAPSHOTTER,
    "copies",
    start,
    config={"root_path": "", "reflink": "auto"},
    config_help={"root_path": ROOT_PATH_HELP, "reflink": "When cp shares blocks; see cp(1)."},
)
