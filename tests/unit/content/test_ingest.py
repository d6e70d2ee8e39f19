"""The bytes of an ingest: order, digests, bounds, and disks that refuse."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisord.content import behind
from supervisord.content.blobs import BlobFiles
from supervisord.content.ingest import Ingest
from supervisord.content.reader import BlobReader
from supervisord.contracts.errors import DataLoss, NotFound, ResourceExhausted


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def test_pieces_of_all_sizes_arrive_in_order(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    ingest = await Ingest.open(tmp_path / "i", "sha256", executor)
    chance = random.Random(1)  # noqa: S311 - the same bytes each time
    whole = b""
    for size in (0, 1, 100, 40_000, 1 << 20, 3, 5 << 20, 7):
        piece = chance.randbytes(size)
        await ingest.write(piece)
        whole += piece
        assert (ingest.offset, ingest.digest()) == (len(whole), sha(whole))
    await ingest.sync(lambda: None)
    assert (tmp_path / "i").read_bytes() == whole
    await ingest.close()
    await ingest.close()
    again = await Ingest.open(tmp_path / "i", "sha256", executor)
    assert (again.offset, again.digest()) == (len(whole), sha(whole))
    await again.write(b"more")
    await again.close()
    assert (tmp_path / "i").read_bytes() == whole + b"more"


async def test_the_queue_has_a_bound(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "MOST_OF_ONE", 1 << 16)
    ingest = await Ingest.open(tmp_path / "i", "sha256", executor)
    most = 0
    for _ in range(2000):
        await ingest.write(b"x" * 10_000)
        most = max(most, ingest._behind)
    await ingest.settle()
    assert most <= 1 << 16
    assert (tmp_path / "i").stat().st_size == 20_000_000
    await ingest.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount]).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_a_full_disk_keeps_what_fitted(disk: Path, executor: ThreadPoolExecutor) -> None:
    (disk / "other").write_bytes(b"x" * (2 << 20))
    ingest = await Ingest.open(disk / "i", "sha256", executor)
    chunk = os.urandom(1 << 20)
    with pytest.raises(ResourceExhausted):
        for _ in range(8):
            await ingest.write(chunk)
        await ingest.settle()
    kept = (disk / "i").read_bytes()
    assert (ingest.offset, ingest.digest()) == (len(kept), sha(kept))
    assert 0 < len(kept) <= 2 << 20
    (disk / "other").unlink()
    await ingest.write(b"goes on")
    await ingest.sync(lambda: None)
    assert ingest.digest() == sha(kept + b"goes on")
    assert (disk / "i").read_bytes() == kept + b"goes on"
    await ingest.close()


async def test_close_writes_what_is_queued(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    ingest = await Ingest.open(tmp_path / "i", "sha256", executor)
    for _ in range(6):
        await ingest.write(b"y" * (1 << 20))
    await ingest.close()
    assert (tmp_path / "i").stat().st_size == 6 << 20


async def test_a_durable_close_tells_what_the_disk_refuses(
    tmp_path: Path,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(errno.EIO, "broken")

    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", refuse)
    for durable in (False, True):
        ingest = await Ingest.open(tmp_path / "i", "sha256", executor)
        await ingest.write(b"abc")
        await ingest.close(durable=durable)
    assert len(synced) == 1
    [record] = [r for r in caplog.records if r.name == "supervisord.content.ingest"]
    assert "broken" in record.getMessage()
    assert (tmp_path / "i").read_bytes() == b"abcabc"


async def test_several_at_once(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    async def one(number: int) -> None:
        ingest = await Ingest.open(tmp_path / str(number), "sha256", executor)
        for _ in range(20):
            await ingest.write(bytes([number]) * 100_000)
        await ingest.close()

    await asyncio.gather(*(one(number) for number in range(12)))
    for number in range(12):
        assert (tmp_path / str(number)).read_bytes() == bytes([number]) * 2_000_000


def test_publishing_twice_keeps_the_blob(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path)
    digest = sha(b"abc")
    for number in (1, 2):
        files.ingest_path(number).write_bytes(b"abc")
    assert files.publish(1, digest, 3)
    assert not files.publish(2, digest, 3)
    files.finish(1, digest)
    files.finish(2, digest)
    assert list(files.all_ingests()) == []
    assert list(files.all_blobs()) == [digest]
    assert files.blob_path(digest).read_bytes() == b"abc"
    assert files.blob_size(digest) == 3
    files.remove_blob(digest)
    files.remove_blob(digest)
    assert files.blob_size(digest) is None


def test_a_damaged_blob_is_replaced(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path)
    digest = sha(b"abc")
    files.blob_path(digest).write_bytes(b"a")
    files.ingest_path(1).write_bytes(b"abc")
    assert files.publish(1, digest, 3)
    files.finish(1, digest)
    assert files.blob_path(digest).read_bytes() == b"abc"
    assert [path.name for path in (tmp_path / "ingest").iterdir()] == []


async def test_a_reader_reads_any_part(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "b").write_bytes(data)
    reader = BlobReader(tmp_path / "b")
    for offset, size in ((0, 10), (5, 1 << 20), (0, 3 << 20), ((3 << 20) - 1, 5), (9 << 20, 1)):
        assert await reader.read(offset, size) == data[offset : offset + size]
    assert os.fstat(reader.fileno()).st_size == reader.size
    reader.close()
    reader.close()
    with pytest.raises(NotFound, match="none"):
        BlobReader(tmp_path / "none")


async def test_a_disk_that_cannot_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").write_bytes(b"x" * 100)
    reader, pread = BlobReader(tmp_path / "b"), os.pread

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    def halves(descriptor: int, size: int, offset: int) -> bytes:
        return pread(descriptor, (size + 1) // 2, offset)

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DataLoss, match="b: cannot read the blob: broken"):
        await reader.read(0, 10)
    monkeypatch.setattr(os, "preadv", lambda *_: 5)  # the rest is not in memory
    monkeypatch.setattr(os, "pread", halves)
    assert await reader.read(0, 100, b"head") == b"head" + b"x" * 100
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(DataLoss, match="broken"):
        await reader.read(0, 10)
    reader.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ResourceExhausted, match="Too many open files"):
            BlobReader(tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
