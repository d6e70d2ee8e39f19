"""Diff.Diff: what is in a computed layer, byte for byte as containerd writes it, and its blob."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2

from .layers import Tree
from .ocitar import LAYER, Member, folder, sha256
from .test_rpc_diff_apply import CAPABILITY
from .wire import Wire

Code = grpc.StatusCode
SEEN: dict[str, str] = {}
"""Digests of layers that the first daemon wrote, by snapshotter."""


@pytest.fixture(params=["overlayfs", "native"])
def tree(request: pytest.FixtureRequest, wire: Wire, tmp_path: Path) -> Tree:
    tree = Tree(wire, request.param, tmp_path)
    tree.layer(
        "base",
        "",
        *(folder("d"), Member("d/kept", b"k"), Member("d/gone"), folder("f"), Member("f/old")),
        *(folder("moved"), Member("moved/in", b"in"), Member("linked", b"l")),
    )
    return tree


def change(root: Path) -> None:
    """Additions of every kind, with fixed times."""
    (root / "d" / ("n" * 120)).write_bytes(b"long")
    (root / "d" / ("ä" * 40)).write_bytes(b"not ascii")
    deep = root / "d" / "/".join(["p" * 60] * 3)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"f" * 1000)
    (root / "suid").write_bytes(b"s")
    os.chown(root / "suid", 3_000_000, 7)
    (root / "suid").chmod(0o6755)
    (root / "cap").write_bytes(b"c")
    os.setxattr(root / "cap", "security.capability", CAPABILITY)
    os.setxattr(root / "cap", "user.note", b"stays behind")
    os.link(root / "cap", root / "d/cap-too")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mkfifo(root / "fifo")
    (root / "sym").symlink_to("t/" * 80)
    with open(root / "sparse", "wb") as file:
        file.truncate(100_000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "sock"))
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(5, 1_600_000_000_123_456_789), follow_symlinks=False)


def test_bytes(tree: Tree) -> None:
    upper = tree.prepare("upper", "base")
    with tree.mounted(upper) as root:
        change(root)
    layer = tree.diff(tree.view("lower", "base"), upper, media_type=LAYER)
    found = tree.members(layer)
    assert "sock" not in found
    assert found["suid"].uid == 3_000_000
    assert found["suid"].mtime == 1_600_000_000
    assert found["sparse"].size == 100_000
    assert (found["block"].devmajor, found["block"].devminor) == (259, 70000)
    assert found["d/cap-too"].linkname == "cap"
    held = found["cap"].pax_headers
    assert held["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") == CAPABILITY
    assert "SCHILY.xattr.user.note" not in held
    assert layer.digest == SEEN.setdefault("bytes", layer.digest)


def test_changes(tree: Tree) -> None:
    upper = tree.prepare("upper", "base")
    with tree.mounted(upper) as root:
        (root / "d/gone").unlink()
        (root / "f/old").unlink()
        (root / "f").rmdir()
        (root / "f").mkdir()
        (root / "f/new").write_text("new")
        subprocess.run(["mv", root / "moved", root / "elsewhere"], check=True)
        os.link(root / "linked", root / "linked-too")
        (root / "d/kept").chmod(0o600)
    layer = tree.diff(tree.view("lower", "base"), upper)
    found = tree.members(layer)
    assert {"d/.wh.gone", "d/kept", "f/.wh.old", "f/new"} <= set(found)
    assert {".wh.moved", "elsewhere", "elsewhere/in"} <= set(found)
    assert {found["linked"].islnk(), found["linked-too"].islnk()} == {True, False}
    again = tree.prepare("again", "base")
    tree.apply(tree.blob(layer), again, layer.media_type)
    with tree.mounted(upper) as root:
        wanted = {str(p.relative_to(root)): p.lstat().st_mode for p in root.rglob("*")}
    with tree.mounted(again) as root:
        assert {str(p.relative_to(root)): p.lstat().st_mode for p in root.rglob("*")} == wanted


def test_the_same_layer_again(tree: Tree) -> None:
    """It exists already then; both calls answer it."""
    upper = tree.prepare("upper", "base")
    with tree.mounted(upper) as root:
        (root / "new").write_text("x")
    lower = tree.view("lower", "base")
    assert tree.diff(lower, upper) == tree.diff(lower, upper)
    assert list_ingests(tree.wire) == []


def list_ingests(wire: Wire) -> list[str]:
    answer = wire.content.ListStatuses(content_pb2.ListStatusesRequest())
    return [status.ref for status in answer.statuses]


def test_labels_and_media_types(tree: Tree) -> None:
    upper, lower = tree.prepare("upper", "base"), tree.view("lower", "base")
    with tree.mounted(upper) as root:
        (root / "new").write_text("x")
    plain = tree.diff(lower, upper, media_type=LAYER)
    assert plain.media_type == LAYER
    assert sha256(tree.blob(plain)) == plain.digest
    packed = tree.diff(lower, upper, labels={"mine": "1"})
    assert packed.media_type == f"{LAYER}+gzip"
    info = tree.wire.content.Info(content_pb2.InfoRequest(digest=packed.digest)).info
    assert info.labels["mine"] == "1"
    assert info.labels["containerd.io/uncompressed"] == plain.digest
    assert packed.size == info.size


def test_the_ref_is_taken_over(tree: Tree) -> None:
    """What a lost caller left under the ref is thrown away."""
    upper, lower = tree.prepare("upper", "base"), tree.view("lower", "base")
    with tree.mounted(upper) as root:
        (root / "new").write_text("x")
    begun = content_pb2.WriteContentRequest(
        action=content_pb2.WRITE, ref="mine", data=b"left over", offset=0
    )
    list(tree.wire.content.Write(iter([begun])))
    assert list_ingests(tree.wire) == ["mine"]
    assert "new" in tree.members(tree.diff(lower, upper, ref="mine"))
    assert list_ingests(tree.wire) == []


def test_what_is_refused(tree: Tree) -> None:
    upper, lower = tree.prepare("upper", "base"), tree.view("lower", "base")
    with tree.wire.refused(Code.UNIMPLEMENTED, "application/x-bzip2"):
        tree.diff(lower, upper, media_type="application/x-bzip2")
    assert list_ingests(tree.wire) == []


def test_sides_of_unlike_kinds(tree: Tree) -> None:
    """From nothing, and from what is not upper's parent: both trees are walked then."""
    upper = tree.prepare("upper", "base")
    with tree.mounted(upper) as root:
        (root / "new").write_text("x")
    whole = tree.members(tree.diff([], upper))
    assert {"d", "d/kept", "moved/in", "new"} <= set(whole)
    tree.layer("other", "", folder("d"), Member("d/kept", b"k"), Member("theirs"))
    found = tree.members(tree.diff(tree.view("stranger", "other"), upper))
    assert {".wh.theirs", "new", "linked", "d/gone"} <= set(found)
    assert "d/kept" not in found
