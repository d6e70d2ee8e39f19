"""Images of erofs as layers, into snapshots of the erofs snapshotter; and differs in turn."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest
import zstandard

from snapshotters.erofs import ErofsSnapshotter, image
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.errors import DataLoss, ResourceExhausted, Unimplemented
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.diff.erofs import ErofsDiffer
from supervisord.diff.turns import Turns
from supervisord.metadata.store import Metadata
from supervisord.testing.mounting import mounted
from tests.unit.unpack.forks import Forks

SCOPE = Scope("test")
LAYER = "application/vnd.erofs.layer.v1"
TAR = "application/vnd.oci.image.layer.v1.tar"

pytestmark = pytest.mark.blocks("it mounts, and reads what it has mounted")


@pytest.fixture
async def snapshots(tmp_path: Path) -> AsyncIterator[ErofsSnapshotter]:
    opened = await ErofsSnapshotter.open(tmp_path / "snapshots")
    yield opened
    await opened.close()


@pytest.fixture
def differ(stores: Metadata, forks: Forks) -> ErofsDiffer:
    return ErofsDiffer(stores.content, forks, limit=1 << 20)


@pytest.fixture
async def layer(tmp_path: Path) -> bytes:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("in an image")
    await image.build(str(tmp_path / "tree"), str(tmp_path / "image"))
    return (tmp_path / "image").read_bytes()


async def stored(stores: Metadata, data: bytes, media_type: str) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    writer = await stores.content.writer(SCOPE, digest)
    try:
        await writer.write(data)
        await writer.commit(len(data), digest, {"containerd.io/gc.root": "x"})
    finally:
        await writer.close()
    return Descriptor(media_type, digest, len(data))


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_image_becomes_a_layer(
    stores: Metadata,
    differ: ErofsDiffer,
    snapshots: ErofsSnapshotter,
    layer: bytes,
    tmp_path: Path,
    compressed: bool,
) -> None:
    data = zstandard.compress(layer) if compressed else layer
    kind = f"{LAYER}+zstd" if compressed else LAYER
    blob = await stored(stores, data, kind)
    await snapshots.prepare("below", "", {})
    await snapshots.commit("base", "below", {})
    for number, parent in enumerate(("", "base")):
        mounts = await snapshots.prepare(f"key{number}", parent, {})
        applied = await differ.apply(SCOPE, blob, mounts, ApplyOptions())
        digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        assert applied == Descriptor(LAYER, digest, len(layer))
        await snapshots.commit(f"name{number}", f"key{number}", {})
        mounts = await snapshots.view(f"view{number}", f"name{number}", {})
        with mounted(mounts, tmp_path / "mnt") as root:
            assert (root / "file").read_text() == "in an image"


async def test_what_is_not_for_it(
    stores: Metadata, differ: ErofsDiffer, snapshots: ErofsSnapshotter, tmp_path: Path
) -> None:
    own = await snapshots.prepare("key", "", {})
    (tmp_path / "other/fs").mkdir(parents=True)
    other = [Mount("bind", f"{tmp_path}/other/fs", ("rw",))]
    for kind, mounts in (
        (TAR, own),
        (f"{LAYER}+gzip", own),
        (LAYER, other),
        (LAYER, []),
        (LAYER, [Mount("overlay", "overlay", ("lowerdir=/a:/b",))]),
        (LAYER, [Mount("tmpfs", "tmpfs")]),
    ):
        blob = await stored(stores, os.urandom(8), kind)
        with pytest.raises(Unimplemented):
            await differ.apply(SCOPE, blob, mounts, ApplyOptions())
        with pytest.raises(Unimplemented):
            async with differ.applying(kind, mounts, ApplyOptions()):
                raise AssertionError
    with pytest.raises(Unimplemented):
        await differ.diff(SCOPE, own, own, DiffOptions())
    assert os.listdir(tmp_path / "other") == ["fs"]


async def test_bad_blobs_leave_nothing(
    stores: Metadata, differ: ErofsDiffer, snapshots: ErofsSnapshotter
) -> None:
    mounts = await snapshots.prepare("key", "", {})
    folder = Path(mounts[0].source).parent
    for data, kind in (
        (zstandard.compress(bytes(2 << 20)), ResourceExhausted),
        (zstandard.compress(os.urandom(5000))[:2000], DataLoss),
    ):
        blob = await stored(stores, data, f"{LAYER}+zstd")
        with pytest.raises(kind):
            await differ.apply(SCOPE, blob, mounts, ApplyOptions())
        assert sorted(os.listdir(folder)) == [".erofslayer", "fs", "work"]


async def test_who_gives_up_leaves_nothing(
    stores: Metadata, differ: ErofsDiffer, snapshots: ErofsSnapshotter, layer: bytes
) -> None:
    mounts = await snapshots.prepare("key", "", {})
    folder = Path(mounts[0].source).parent
    blob = await stored(stores, layer, LAYER)
    begun = asyncio.Event()

    async def spawn(kind: str, arguments: object, fds: object = ()) -> int:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with mock.patch.object(differ, "_workers", mock.Mock(spawn=spawn)):
        applying = asyncio.ensure_future(differ.apply(SCOPE, blob, mounts, ApplyOptions()))
        await begun.wait()
        assert len(os.listdir(folder)) == 4
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
    assert sorted(os.listdir(folder)) == [".erofslayer", "fs", "work"]


async def test_in_turn(
    stores: Metadata, differ: ErofsDiffer, snapshots: ErofsSnapshotter, layer: bytes
) -> None:
    mounts = await snapshots.prepare("key", "", {})
    blob = await stored(stores, layer, LAYER)
    turns = Turns([differ, differ])
    assert (await turns.apply(SCOPE, blob, mounts, ApplyOptions())).digest == blob.digest
    with pytest.raises(Unimplemented, match="not applied from a stream"):
        async with turns.applying(TAR, mounts, ApplyOptions()):
            raise AssertionError
    with pytest.raises(Unimplemented, match="no differ writes media type 'x'"):
        await Turns([]).diff(SCOPE, mounts, mounts, DiffOptions("x"))
