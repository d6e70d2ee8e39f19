"""Diff.Apply: what layers of every kind become, on both snapshotters, and what is refused."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
import zstandard

from . import ocitar
from .layers import Mounts, Tree
from .ocitar import LAYER, Member, folder, hardlink, sha256, symlink
from .wire import Wire

Code = grpc.StatusCode
CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"


@pytest.fixture(params=["overlayfs", "native"])
def tree(request: pytest.FixtureRequest, wire: Wire, tmp_path: Path) -> Tree:
    return Tree(wire, request.param, tmp_path)


@pytest.fixture
def empty(tree: Tree) -> Mounts:
    return tree.prepare("key")


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_attributes(tree: Tree, empty: Mounts) -> None:
    """Of PAX: ids beyond 2^21, nanoseconds, xattrs with capabilities, long names."""
    long, far = "n" * 200, "d" * 120 + "/" + "e" * 120
    headers = {"mtime": "1600000000.123456789", "SCHILY.xattr.user.note": "hello"}
    capability = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin1")}
    layer = ocitar.tar(
        [
            folder("top", 0o2751, uid=3_000_000, gid=4_000_000, pax={"mtime": "1.5"}),
            Member("top/file", b"data", mode=0o4755, pax=headers),
            Member("top/" + long, b"x", pax=capability),
            Member(far, b"far"),
            symlink("top/" + "l" * 150, "t/" * 100),
            Member("top/null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
            Member("top/fifo", type=tarfile.FIFOTYPE, mode=0o600),
            hardlink("top/hard", "top/file", mode=0o4755, pax=headers),
        ]
    )
    applied = tree.apply(layer, empty)
    assert (applied.media_type, applied.digest, applied.size) == (LAYER, sha256(layer), len(layer))
    with tree.mounted(empty) as root:
        top, file = (root / "top").stat(), (root / "top/file").stat()
        assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode)) == (3_000_000, 4_000_000, 0o2751)
        assert top.st_mtime_ns == 1_500_000_000
        assert file.st_mtime_ns == 1_600_000_000_123_456_789
        assert (stat.S_IMODE(file.st_mode), file.st_nlink) == (0o4755, 2)
        assert os.getxattr(root / "top/file", "user.note") == b"hello"
        assert os.getxattr(root / "top" / long, "security.capability") == CAPABILITY
        assert (root / far).read_bytes() == b"far"
        assert os.readlink(root / "top" / ("l" * 150)) == "t/" * 100
        assert (root / "top/null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((root / "top/fifo").stat().st_mode)


def test_whiteouts(tree: Tree) -> None:
    tree.layer(
        "base",
        "",
        *(
            folder("d"),
            Member("d/gone", b"1"),
            Member("d/kept"),
            folder("d/sub"),
            Member("d/sub/x"),
        ),
        *(folder("opaque"), Member("opaque/old"), folder("opaque/sub"), Member("opaque/sub/old")),
        *(Member("file"), folder("folder"), Member("folder/in")),
    )
    upper = tree.prepare("upper", "base")
    changes = [
        *(folder("d"), Member("d/.wh.gone"), Member("d/.wh.sub"), folder("opaque")),
        *(Member("opaque/.wh..wh..opq"), Member("opaque/new"), folder("file"), Member("file/in")),
        *(Member(".wh.folder"), Member("folder", b"a file now")),
    ]
    if not tree.wire.ours:  # which cannot replace a mark, or deletes what was just written
        changes = changes[:-2]
    tree.apply(ocitar.tar(changes), upper)
    with tree.mounted(upper) as root:
        found = names(root)
        assert {"d/kept", "opaque/new", "file/in"} <= found
        assert not {"d/gone", "d/sub", "opaque/old", "opaque/sub"} & found
        if tree.wire.ours:
            assert (root / "folder").read_text() == "a file now"


def test_hard_links(tree: Tree, empty: Mounts) -> None:
    """Also to a file that a later entry replaces, through a link, and to a link."""
    tree.apply(
        ocitar.tar(
            [
                *(folder("real"), Member("real/a", b"first"), symlink("way", "real")),
                *(hardlink("b", "way/a"), Member("real/a", b"second")),
                *(symlink("s", "nowhere"), hardlink("t", "s")),
            ]
        ),
        empty,
    )
    with tree.mounted(empty) as root:
        assert (root / "b").read_text() == "first"
        assert (root / "real/a").read_text() == "second"
        assert os.readlink(root / "t") == "nowhere"


@pytest.mark.parametrize("missing", ["nowhere", "../../../../../../etc/passwd"])
def test_hard_links_to_nothing(tree: Tree, empty: Mounts, missing: str) -> None:
    layer = ocitar.tar([hardlink("h", missing)])
    with tree.wire.refused(Code.INVALID_ARGUMENT, missing, reference=Code.UNKNOWN):
        tree.apply(layer, empty)


def test_sparse_files(tree: Tree, empty: Mounts) -> None:
    headers = {
        "GNU.sparse.map": "1048576,5,2097152,0",
        "GNU.sparse.size": "2097152",
        "GNU.sparse.numblocks": "2",
    }
    headers |= {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "real"}
    tree.apply(ocitar.tar([Member("GNUSparseFile.0/real", b"hello", pax=headers)]), empty)
    with tree.mounted(empty) as root:
        data = (root / "real").read_bytes()
    assert data == bytes(1 << 20) + b"hello" + bytes((1 << 20) - 5)


# Compression -----------------------------------------------------------------------------------

FILES = ocitar.tar([folder("d"), Member("d/f", os.urandom(70_000)), Member("toc.json", b"{}")])


def estargz() -> bytes:
    """A gzip member for each file, as estargz has them, and an empty one with its footer."""
    cuts = [0, 512, 512 + 70_656, len(FILES)]
    parts = [FILES[start:end] for start, end in pairwise(cuts)]
    return b"".join(map(gzip.compress, parts)) + gzip.compress(b"")


def zstd_chunked() -> bytes:
    """A frame for each chunk, and the table of contents in one to be skipped."""
    compress = zstandard.ZstdCompressor().compress
    skipped = struct.pack("<II", 0x184D2A50, 100) + bytes(100)
    return compress(FILES[:512]) + compress(FILES[512:]) + skipped


@pytest.mark.parametrize(
    ("media_type", "blob"),
    [
        (LAYER, FILES),
        (f"{LAYER}+gzip", gzip.compress(FILES)),
        (f"{LAYER}+zstd", zstandard.ZstdCompressor().compress(FILES)),
        (f"{LAYER}+gzip", estargz()),
        (f"{LAYER}+zstd", zstd_chunked()),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gzip.compress(FILES)),
        (DOCKER, FILES),
        (DOCKER, gzip.compress(FILES)),
        (f"{DOCKER}.gzip", gzip.compress(FILES)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gzip.compress(FILES)),
    ],
)
def test_compressions(tree: Tree, empty: Mounts, media_type: str, blob: bytes) -> None:
    applied = tree.apply(blob, empty, media_type)
    assert (applied.media_type, applied.digest, applied.size) == (LAYER, sha256(FILES), len(FILES))
    with tree.mounted(empty) as root:
        assert names(root) == {"d", "d/f", "toc.json"}


def test_trailing_zeros_count(tree: Tree, empty: Mounts) -> None:
    padded = FILES + bytes(100_000)
    assert tree.apply(gzip.compress(padded), empty, f"{LAYER}+gzip").digest == sha256(padded)


# Hostile and broken ----------------------------------------------------------------------------


def test_nothing_leaves_the_snapshot(tree: Tree, empty: Mounts, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("untouched")
    escape = str(tmp_path)
    layer = [
        Member("../../outside", b"1"),
        Member("/absolute", b"2"),
        symlink("out", escape),
        Member("out/outside", b"3"),
        symlink("up", "../../.."),
        Member("up/above", b"4"),
        folder("swapped"),
        symlink("swapped", escape),
        Member("swapped/outside", b"5"),
    ]
    tree.apply(ocitar.tar(layer), empty)
    assert (tmp_path / "outside").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "mnt"}
    with tree.mounted(empty) as root:
        found = names(root)
    assert {"outside", "absolute", "above", f"{escape[1:]}/outside"} <= found


@pytest.mark.parametrize(
    ("blob", "media_type", "words"),
    [
        (gzip.compress(FILES)[:-2000], f"{LAYER}+gzip", "cut off"),
        (gzip.compress(FILES) + b"junk", f"{LAYER}+gzip", "behind the end"),
        (zstandard.ZstdCompressor().compress(FILES)[:-2000], f"{LAYER}+zstd", "cut off"),
        (FILES[:30_000], LAYER, "middle of a file"),
        (b"x" + FILES[1:], LAYER, "checksum"),
        (gzip.compress(FILES), LAYER, "header"),
    ],
)
def test_broken_layers(tree: Tree, empty: Mounts, blob: bytes, media_type: str, words: str) -> None:
    with tree.wire.refused(Code.DATA_LOSS, words, reference=Code.UNKNOWN):
        tree.apply(blob, empty, media_type)


def test_a_file_where_a_folder_should_be(tree: Tree, empty: Mounts) -> None:
    layer = ocitar.tar([Member("f", b"1"), Member("f/g", b"2")])
    with tree.wire.refused(Code.INVALID_ARGUMENT, "not a directory", reference=Code.UNKNOWN):
        tree.apply(layer, empty)


def test_whiteouts_without_a_name(tree: Tree, empty: Mounts) -> None:
    with tree.wire.refused(Code.INVALID_ARGUMENT, "whiteout", reference=Code.UNKNOWN):
        tree.apply(ocitar.tar([Member("d/.wh...")]), empty)


def test_encrypted_layers(tree: Tree, empty: Mounts) -> None:
    media_type = f"{LAYER}+gzip+encrypted"
    with tree.wire.refused(Code.UNIMPLEMENTED, media_type, reference=Code.UNKNOWN):
        tree.apply(os.urandom(1000), empty, media_type)


def test_after_a_failure_the_snapshot_can_be_used(tree: Tree, empty: Mounts) -> None:
    with pytest.raises(grpc.RpcError):
        tree.apply(FILES[:30_000], empty)
    tree.apply(FILES, empty)
    with tree.mounted(empty) as root:
        assert (root / "d/f").stat().st_size == 70_000
