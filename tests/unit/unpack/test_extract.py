"""Extraction into a plain tree, by a real worker in its chroot."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from .archives import archive, folder, hardlink, member, symlink
from .conftest import Apply


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_kinds_and_attributes(apply: Apply, root: Path) -> None:
    mtime = "1600000000.123456789"
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    headers = {"mtime": mtime, "SCHILY.xattr.user.note": "hello"}
    privileged = {"SCHILY.xattr.security.capability": capability.decode("latin1")}
    result = apply(
        archive(
            folder("d", mode=0o2750, uid=1, gid=2, pax_headers={"mtime": mtime}),
            member("d/f", b"contents", mode=0o4711, uid=3, gid=4, pax_headers=headers),
            member("d/cap", b"x", mode=0o755, pax_headers=privileged),
            symlink("d/s", "f", uid=5, gid=6, pax_headers={"mtime": mtime}),
            hardlink("d/h", "d/f", mode=0o4711, uid=3, gid=4, pax_headers=headers),
            member("d/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("d/loop", type=tarfile.BLKTYPE, devmajor=7, devminor=0, mode=0o660),
            member("d/fifo", type=tarfile.FIFOTYPE, mode=0o622),
        )
    )
    assert result["entries"] == 8
    top, file = (root / "d").stat(), (root / "d/f").stat()
    assert (top.st_mode, top.st_uid, top.st_gid) == (stat.S_IFDIR | 0o2750, 1, 2)
    assert top.st_mtime_ns == file.st_mtime_ns == 1600000000_123456789
    assert (file.st_mode & 0o7777, file.st_uid, file.st_gid, file.st_nlink) == (0o4711, 3, 4, 2)
    assert (root / "d/f").read_bytes() == b"contents"
    assert os.getxattr(root / "d/f", "user.note") == b"hello"
    assert os.getxattr(root / "d/cap", "security.capability") == capability
    link = (root / "d/s").lstat()
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (5, 6, 1600000000_123456789)
    assert os.readlink(root / "d/s") == "f"
    assert (root / "d/h").stat().st_ino == file.st_ino
    assert (root / "d/null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "d/null").stat().st_mode == stat.S_IFCHR | 0o666
    assert (root / "d/loop").stat().st_mode == stat.S_IFBLK | 0o660
    assert (root / "d/fifo").stat().st_mode == stat.S_IFIFO | 0o622


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_result(apply: Apply, compress: object) -> None:
    assert callable(compress)
    data = archive(member("f", b"x" * 3_000_000)) + bytes(5000)
    result = apply(compress(data))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert result == {"digest": digest, "size": len(data), "entries": 1}


def test_an_empty_layer(apply: Apply, root: Path) -> None:
    assert apply(b"")["size"] == 0
    assert apply(archive())["entries"] == 0
    assert tree(root) == []


def test_the_root_itself_is_left_alone(apply: Apply, root: Path) -> None:
    root.chmod(0o711)
    apply(archive(folder(".", mode=0o700, uid=7), folder("/", mode=0o700), member("./f")))
    assert root.stat().st_mode & 0o7777 == 0o711
    assert tree(root) == ["f"]


def test_missing_folders_are_made(apply: Apply, root: Path) -> None:
    apply(archive(member("a/b/c/f", b"1")))
    assert (root / "a/b").stat().st_mode & 0o7777 == 0o755
    assert (root / "a/b/c/f").read_text() == "1"


def test_entries_replace_what_is_there(apply: Apply, root: Path) -> None:
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/sub/old").write_text("old")
    (root / "merged").mkdir()
    (root / "merged/kept").write_text("kept")
    (root / "file").write_text("old")
    (root / "link").symlink_to("merged")
    (root / "open").write_text("old")
    apply(
        archive(
            member("dir", b"now a file"),
            folder("merged", mode=0o700),
            folder("file"),
            folder("link"),
            member("link/inside", b"1"),
            symlink("open", "/elsewhere"),
            member("twice", b"first"),
            member("twice", b"second"),
        )
    )
    assert (root / "dir").read_text() == "now a file"
    assert (root / "merged/kept").read_text() == "kept"
    assert (root / "merged").stat().st_mode & 0o7777 == 0o700
    assert (root / "file").is_dir()
    assert not (root / "link").is_symlink()
    assert not (root / "merged/inside").exists()
    assert os.readlink(root / "open") == "/elsewhere"
    assert (root / "twice").read_text() == "second"


def test_folders_behind_links(apply: Apply, root: Path) -> None:
    apply(
        archive(
            folder("usr/lib"),
            symlink("lib", "usr/lib"),
            member("lib/a", b"a"),
            symlink("absolute", "/usr/lib"),
            member("absolute/b", b"b"),
            symlink("dangling", "not/yet"),
            member("dangling/c", b"c"),
            hardlink("d", "lib/a"),
        )
    )
    assert (root / "usr/lib/a").read_text() == "a"
    assert (root / "usr/lib/b").read_text() == "b"
    assert (root / "not/yet/c").read_text() == "c"
    assert (root / "d").stat().st_ino == (root / "usr/lib/a").stat().st_ino


def test_a_hard_link_to_a_link_is_one(apply: Apply, root: Path) -> None:
    apply(archive(symlink("a", "nowhere"), hardlink("b", "a")))
    assert os.readlink(root / "b") == "nowhere"


def test_contiguous_files_are_files(apply: Apply, root: Path) -> None:
    apply(archive(member("f", b"1", type=tarfile.CONTTYPE)))
    assert (root / "f").read_text() == "1"


def test_set_group_folders_do_not_leak_their_group(apply: Apply, root: Path) -> None:
    apply(archive(folder("d", mode=0o2777, gid=9), member("d/f"), folder("d/s", mode=0o755)))
    assert (root / "d/f").stat().st_gid == 0
    found = (root / "d/s").stat()
    assert (found.st_gid, found.st_mode & 0o7777) == (0, 0o755)


def test_times_out_of_range(apply: Apply, root: Path) -> None:
    early, late = {"mtime": "-5"}, {"mtime": "99999999999999"}
    apply(archive(member("early", pax_headers=early), member("late", pax_headers=late)))
    assert (root / "early").stat().st_mtime == 0
    assert (root / "late").stat().st_mtime == 0


def test_sparse_files_stay_sparse(apply: Apply, root: Path, tmp_path: Path) -> None:
    source = root / "source"
    with open(source, "wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"middle")
    data = subprocess.run(
        ["tar", "-C", str(root), "-cS", "--format=pax", "--transform=s/source/copy/", "source"],
        check=True,
        capture_output=True,
    ).stdout
    apply(data)
    copy = root / "copy"
    assert copy.stat().st_blocks < 1000
    assert copy.read_bytes() == source.read_bytes()


def test_xattrs_that_a_layer_may_not_bring(apply: Apply, root: Path) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.user.fine": "1",
    }
    only_user = {"SCHILY.xattr.user.a": "1"}
    result = apply(
        archive(folder("d", pax_headers=headers), symlink("s", "d", pax_headers=only_user))
    )
    assert "error" not in result
    assert os.listxattr(root / "d") == ["user.fine"]


# Whiteouts ------------------------------------------------------------------------------------


def test_whiteouts_delete(apply: Apply, root: Path) -> None:
    (root / "d/sub").mkdir(parents=True)
    for name in ("d/a", "d/sub/b", "kept"):
        (root / name).write_text("old")
    apply(archive(member("d/.wh.a"), member("d/.wh.sub"), member(".wh.nothing")))
    assert tree(root) == ["d", "kept"]


def test_opaque_folders_keep_what_the_layer_brings(apply: Apply, root: Path) -> None:
    (root / "d/both").mkdir(parents=True)
    (root / "d/both/old").write_text("old")
    (root / "d/old").write_text("old")
    apply(
        archive(
            member("d/new", b"new"),
            member("d/both/new", b"new"),
            member("d/.wh..wh..opq"),
            member("d/later", b"new"),
            member("d/.wh.new"),
        )
    )
    assert tree(root) == ["d", "d/both", "d/both/new", "d/later", "d/new"]


def test_marks_of_aufs_are_passed_over(apply: Apply, root: Path) -> None:
    apply(archive(folder(".wh..wh.plnk"), member(".wh..wh.aufs")))
    assert tree(root) == []


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteouts_that_leave_their_folder(apply: Apply, root: Path, name: str) -> None:
    (root / "kept").write_text("old")
    error = apply(archive(member(name)))["error"]
    assert error["code"] == 3
    assert "whiteout" in error["message"]
    assert (root / "kept").exists()


def test_in_a_user_namespace(tmp_path: Path) -> None:
    """Devices are left out there; all else is as ever."""
    root, blob = tmp_path / "root", tmp_path / "layer.tar"
    root.mkdir()
    device = member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    blob.write_bytes(archive(folder("d"), device, member("d/f", b"1"), hardlink("h", "d/f")))
    script = (
        "import os, sys; from shims.unpack import worker; mount = {'type': 'bind', 'source':"
        " sys.argv[1], 'options': ['rw']}; worker.main({'mounts': [mount]},"
        " [os.open(sys.argv[2], os.O_RDONLY), 1])"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    command += [str(root), str(blob)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["entries"] == 4
    assert tree(root) == ["d", "d/f", "h"]
