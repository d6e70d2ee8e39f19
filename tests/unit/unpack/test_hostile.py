"""Layers that try to get out, lie, or swell. The fixtures check that nothing outside is touched."""

from __future__ import annotations

import gzip
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from supervisord.linux.process import start_time

from .archives import archive, folder, hardlink, member, symlink
from .conftest import Apply
from .forks import Forks


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "//../outside", "./../outside"]
)
def test_names_end_at_the_root(apply: Apply, root: Path, name: str) -> None:
    assert "error" not in apply(archive(member(name, b"inside")))
    assert (root / "outside").read_text() == "inside"


@pytest.mark.parametrize("target", ["..", "../..", "/..", "../../../../../../.."])
def test_links_lead_nowhere_else(apply: Apply, root: Path, target: str) -> None:
    result = apply(archive(symlink("out", target), member("out/outside", b"inside")))
    assert "error" not in result
    assert (root / "outside").read_text() == "inside"


def test_a_chain_of_links(apply: Apply, root: Path) -> None:
    apply(
        archive(
            folder("d"),
            symlink("d/a", ".."),
            symlink("d/b", "a/.."),
            symlink("d/c", "b/../.."),
            member("d/c/outside", b"inside"),
        )
    )
    assert (root / "outside").read_text() == "inside"


def test_a_folder_swapped_for_a_link(apply: Apply, root: Path, tmp_path: Path) -> None:
    apply(
        archive(
            folder("d", mode=0o700, mtime=1),
            member("d/f", b"1"),
            symlink("d", str(tmp_path)),
            member("d/outside", b"inside"),
        )
    )
    assert (root / str(tmp_path).lstrip("/") / "outside").read_text() == "inside"
    assert tmp_path.stat().st_mtime != 1


@pytest.mark.parametrize("target", ["../outside", "/outside", "link/outside"])
def test_hard_links_find_nothing_outside(apply: Apply, root: Path, target: str) -> None:
    error = apply(archive(symlink("link", ".."), hardlink("h", target)))["error"]
    assert error["code"] == 3
    assert "not there" in error["message"]


def test_writing_through_a_link_that_stands_in_the_way(apply: Apply, root: Path) -> None:
    (root / "f").symlink_to("../outside")
    apply(archive(member("f", b"inside")))
    assert (root / "f").read_text() == "inside"
    assert not (root / "f").is_symlink()


def test_a_cycle_of_links(apply: Apply) -> None:
    error = apply(archive(symlink("a", "b"), symlink("b", "a"), member("a/f")))["error"]
    assert error["code"] == 3
    assert "too many links" in error["message"]


def test_whiteouts_through_links(apply: Apply, root: Path, tmp_path: Path) -> None:
    apply(archive(symlink("out", ".."), member("out/.wh.outside"), member("out/.wh..wh..opq")))
    assert (tmp_path / "outside").exists()


def test_a_file_is_no_folder(apply: Apply) -> None:
    error = apply(archive(member("f", b"1"), member("f/g", b"2")))["error"]
    assert error["code"] == 3
    assert "not a directory" in error["message"]


@pytest.mark.parametrize("name", ["n" * 256, "d/" * 3000 + "f"])
def test_names_that_are_too_long(apply: Apply, name: str) -> None:
    error = apply(archive(member(name)))["error"]
    assert error["code"] == 3
    assert "too long" in error["message"]


def test_unknown_types(apply: Apply) -> None:
    error = apply(archive(member("f", type=b"Z")))["error"]
    assert error["code"] == 3
    assert "unknown type" in error["message"]


@pytest.mark.parametrize("attributes", [{"uid": 1 << 40}, {"gid": -1}, {"uid": (1 << 32) - 1}])
def test_owners_out_of_range(apply: Apply, root: Path, attributes: dict[str, Any]) -> None:
    data = archive(member("f", **attributes), format=tarfile.GNU_FORMAT)
    assert apply(data)["error"]["code"] == 15
    assert list(root.iterdir()) == []


def test_sizes_that_lie(apply: Apply) -> None:
    info, _ = member("f")
    info.size = 1 << 40
    data = info.tobuf(tarfile.PAX_FORMAT) + b"x" * 2048
    error = apply(data)["error"]
    assert error["code"] == 15
    assert "middle of a file" in error["message"]


def test_a_bomb_meets_its_limit(apply: Apply, root: Path) -> None:
    data = gzip.compress(archive(member("bomb", bytes(50_000_000))))
    error = apply(data, limit=10_000_000)["error"]
    assert error["code"] == 8
    assert "more than 10000000 bytes" in error["message"]
    assert (root / "bomb").stat().st_size <= 10_000_000


def test_entries_have_a_limit(apply: Apply, root: Path) -> None:
    many = archive(*(member(f"f{number}") for number in range(11)))
    assert "error" not in apply(many, entries=11)
    error = apply(many, entries=10)["error"]
    assert (error["code"], error["message"]) == (8, "layer: it has more than 10 entries")


@pytest.mark.parametrize("key", ["SCHILY.xattr.", "LIBARCHIVE.xattr.user.%00"])
def test_xattrs_without_a_proper_name(apply: Apply, key: str) -> None:
    error = apply(archive(member("f", pax_headers={key: "eA=="})))["error"]
    assert error["code"] == 15
    assert "extended attribute" in error["message"]


def test_sparse_claims_cost_nothing(apply: Apply, root: Path) -> None:
    headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
    assert "error" not in apply(archive(member("f", b"x", pax_headers=headers)))
    found = (root / "f").stat()
    assert found.st_size == 1 << 40
    assert found.st_blocks < 100


def test_corrupt_streams(apply: Apply) -> None:
    whole = gzip.compress(archive(member("f", os.urandom(1 << 20))))
    for data in (whole[: len(whole) // 2], whole + b"junk", b"\x1f\x8b\x08" + b"junk" * 10):
        assert apply(data)["error"]["code"] == 15


def test_the_worker_gives_up_when_nobody_waits(forks: Forks, root: Path) -> None:
    """The blob comes from a pipe that never ends; the results' reader goes away."""
    blob_read, blob_write = os.pipe()
    receiving, sending = os.pipe()
    mount = {"type": "bind", "source": str(root), "options": ["rw"]}
    info, _ = member("f")
    info.size = 1 << 40
    pid = forks.ask({"mounts": [mount]}, [blob_read, sending])
    for fd in (blob_read, sending, receiving):
        os.close(fd)
    deadline = time.monotonic() + 10
    with pytest.raises(BrokenPipeError):
        os.write(blob_write, info.tobuf(tarfile.PAX_FORMAT))
        while time.monotonic() < deadline:
            os.write(blob_write, bytes(65536))
    os.close(blob_write)
    while start_time(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(pid) is None


def test_folders_deeper_than_any_stack(apply: Apply, root: Path) -> None:
    deep = "d/" * 2000
    assert "error" not in apply(archive(member(deep + "f", b"1")))
    assert "error" not in apply(archive(member("d", b"a file now")))
    assert (root / "d").read_text() == "a file now"


def sparse_map(parts: int) -> bytes:
    """A file of format 1.0 with that many parts of nothing."""
    text = b"%d\n" % parts + b"".join(b"%d\n0\n" % at for at in range(parts))
    data = text.ljust(-(-len(text) // 512) * 512, b"\0")
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(parts)}
    return archive(member("f", data, pax_headers=headers))


def test_sparse_maps_have_a_limit(apply: Apply) -> None:
    assert "error" not in apply(sparse_map(1000))
    assert apply(sparse_map(300_000))["error"]["code"] in (3, 15)


@pytest.mark.parametrize(
    "layer",
    [
        archive(member("zeros", bytes(400 << 20))),
        archive(*(member("f", pax_headers={"comment": "x" * 900_000}) for _ in range(200))),
        sparse_map(250_000),
    ],
    ids=["zeros", "records", "parts"],
)
def test_memory_stays_small(forks: Forks, root: Path, layer: bytes) -> None:
    """However much comes out of a few bytes. Asked while the worker waits for the last of them."""
    blob = gzip.compress(layer, 1)
    blob_read, blob_write = os.pipe()
    receiving, sending = os.pipe()
    mount = {"type": "bind", "source": str(root), "options": ["rw"]}
    pid = forks.ask({"mounts": [mount]}, [blob_read, sending])
    os.close(blob_read)
    os.close(sending)
    with open(blob_write, "wb") as writing:
        writing.write(blob[:-4])
        writing.flush()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not waits_to_read(pid):
            time.sleep(0.01)
        status = Path(f"/proc/{pid}/status").read_text()
        writing.write(blob[-4:])
    with open(receiving, "rb") as reading:
        assert b"digest" in reading.read()
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 96 << 10, f"{peak} KiB"


def waits_to_read(pid: int) -> bool:
    """Whether all threads of a process sleep, one of them in a read of a pipe."""
    calls = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/syscall")]
    return "running" not in calls and not {"0", "63"}.isdisjoint(calls)  # of x86-64 and of arm64
