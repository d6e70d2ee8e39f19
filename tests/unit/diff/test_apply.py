"""Applying layers: media types, results, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import zstandard

from supervisord.contracts.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from supervisord.contracts.images import Descriptor
from supervisord.contracts.snapshots import Mount
from supervisord.diff import Differ
from supervisord.diff.media import DOCKER, DOCKER_FOREIGN, OCI, OCI_FOREIGN, OCI_GZIP, OCI_ZSTD
from supervisord.testing.mounting import mounted
from tests.unit.unpack.archives import archive, folder, member

from .conftest import SCOPE, House

pytestmark = pytest.mark.blocks("it mounts, and writes to the mounts")

LAYER = archive(folder("d", mode=0o711), member("d/f", b"contents"))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("media_type", "compress"),
    [
        (OCI, bytes),
        (OCI_GZIP, gzip.compress),
        (OCI_ZSTD, zstd),
        (OCI_GZIP, zstd),
        (OCI_GZIP, bytes),
        (OCI_FOREIGN, bytes),
        (f"{OCI_FOREIGN}+gzip", gzip.compress),
        (DOCKER, bytes),
        (DOCKER, gzip.compress),
        (f"{DOCKER}.gzip", gzip.compress),
        (f"{DOCKER}.zstd", zstd),
        (f"{DOCKER_FOREIGN}.gzip", gzip.compress),
    ],
)
async def test_media_types(
    house: House, media_type: str, compress: Callable[[bytes], bytes]
) -> None:
    mounts = await house.snapshotter.prepare("key", "", {})
    applied = await house.apply(await house.blob(compress(LAYER), media_type), mounts)
    digest = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
    assert applied == Descriptor(OCI, digest, len(LAYER))
    with mounted(mounts, house.tmp_path / "mnt") as root:
        assert (root / "d/f").read_text() == "contents"
        assert (root / "d").stat().st_mode & 0o7777 == 0o711


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", f"{OCI}+gzip+encrypted", "application/vnd.oci.image.layer.v2"]
)
async def test_media_types_that_are_no_layers(house: House, media_type: str) -> None:
    mounts = await house.snapshotter.prepare("key", "", {})
    with pytest.raises(Unimplemented, match="media type"):
        await house.apply(await house.blob(LAYER, media_type), mounts)


async def test_whiteouts_on_both_snapshotters(house: House) -> None:
    """With a parent the overlay is written directly, and the native one has deletions."""
    first = archive(folder("d"), member("d/a", b"1"), folder("o"), member("o/x"), member("kept"))
    second = archive(member("d/.wh.a"), member("o/.wh..wh..opq"), member("o/y"))
    mounts = await house.snapshotter.prepare("one-key", "", {})
    await house.apply(await house.blob(first, OCI), mounts)
    await house.snapshotter.commit("one", "one-key", {})
    mounts = await house.snapshotter.prepare("two", "one", {})
    await house.apply(await house.blob(second, OCI), mounts, sync=True)
    with mounted(mounts, house.tmp_path / "mnt") as root:
        names = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert names == {"d", "o", "o/y", "kept"}


async def test_blobs_that_are_not_there(house: House) -> None:
    mounts = await house.snapshotter.prepare("key", "", {})
    with pytest.raises(NotFound):
        await house.apply(Descriptor(OCI, f"sha256:{'0' * 64}", 3), mounts)


async def test_no_mounts(house: House) -> None:
    with pytest.raises(InvalidArgument, match="mounts"):
        await house.apply(await house.blob(LAYER, OCI), [])


@pytest.mark.parametrize("data", [gzip.compress(LAYER)[:-9], gzip.compress(LAYER) + b"junk"])
async def test_corrupt_blobs(house: House, data: bytes) -> None:
    mounts = await house.snapshotter.prepare("key", "", {})
    with pytest.raises(DataLoss):
        await house.apply(await house.blob(data, OCI_GZIP), mounts)


async def test_a_worker_that_dies(house: House) -> None:
    class Dying:
        async def spawn(
            self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
        ) -> int:
            return 1  # nobody has the descriptors now: the pipe ends

    house.differ = Differ(house.stores.content, Dying(), house.tmp_path / "state")
    mounts = await house.snapshotter.prepare("key", "", {})
    with pytest.raises(Unknown, match="without a result"):
        await house.apply(await house.blob(LAYER, OCI), mounts)
    with pytest.raises(Unknown, match="without a result"):
        await house.diff([], mounts, ref="again")
    assert await house.stores.content.statuses(SCOPE)


@pytest.mark.parametrize("house", ["overlayfs"], indirect=True)
async def test_a_layer_that_gets_its_parent_at_commit(house: House) -> None:
    """As image layers are unpacked side by side: upper directory only, parent at commit."""
    headers = {"SCHILY.xattr.user.note": "1"}
    base = archive(
        folder("tmp", mode=0o1777),
        folder("home/me", mode=0o700, uid=5, gid=6, mtime=1000, pax_headers=headers),
        member("home/me/old"),
    )
    layer = archive(member("home/me/new"), member("tmp/x/y"), member("home/.wh.me2"))
    for name, data in (("base", base), ("layer", layer)):
        (bind,) = await house.snapshotter.prepare(f"{name}-key", "", {})
        upper = Mount("overlay", "overlay", (f"upperdir={bind.source}",))
        await house.apply(await house.blob(data, OCI), [upper])
    await house.snapshotter.commit("base", "base-key", {})
    await house.snapshotter.commit("layer", "layer-key", {}, parent="base")
    with mounted(await house.snapshotter.view("view", "layer", {}), house.tmp_path / "m") as root:
        me = (root / "home/me").stat()
        assert (me.st_uid, me.st_gid, me.st_mode & 0o7777, me.st_mtime) == (5, 6, 0o700, 1000)
        assert os.listxattr(root / "home/me") == ["user.note"]
        assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
        assert (root / "tmp/x").stat().st_mode & 0o7777 == 0o755
        assert (root / "home/me/old").exists()
        assert (root / "home/me/new").exists()
    own = Path(upper.options[0].removeprefix("upperdir="))
    marks = [os.listxattr(path) for path in (own, own / "home", own / "tmp/x")]
    assert marks == [[], [], []]


async def test_a_caller_that_goes_away(house: House) -> None:
    """The worker here never answers; whoever waits is let go, and no descriptor or ingest stays."""

    held: list[int] = []
    asked = asyncio.Event()

    class Silent:
        async def spawn(
            self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
        ) -> int:
            held.extend(map(os.dup, fds))
            asked.set()
            return 1

    house.differ = Differ(house.stores.content, Silent(), house.tmp_path / "state")
    mounts = await house.snapshotter.prepare("key", "", {})
    blob = await house.blob(LAYER, OCI)
    for work in (house.apply(blob, mounts), house.diff([], mounts)):
        task = asyncio.ensure_future(work)
        await asked.wait()
        asked.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(BrokenPipeError):
            os.write(held[-1], b"too late")
        while held:
            os.close(held.pop())
    assert await house.stores.content.statuses(SCOPE) == []
