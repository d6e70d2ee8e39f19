"""Computed layers: what is in them, that they can be applied again, and what becomes of ingests."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
import zstandard

from supervisord.contracts.errors import InvalidArgument, Unimplemented
from supervisord.contracts.snapshots import Mount
from supervisord.diff.media import OCI, OCI_GZIP, OCI_ZSTD
from supervisord.testing.mounting import mounted
from supervisord.testing.trees import (
    Change,
    both,
    chown,
    contents,
    device,
    file,
    folder,
    link,
    remove,
    symlink,
    xattr,
)

from .conftest import SCOPE, House

pytestmark = pytest.mark.blocks("it mounts, and writes to the mounts")

CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)
BASE = both(
    folder("etc"),
    file("etc/hosts", "1"),
    file("etc/passwd", "root"),
    folder("gone"),
    file("gone/a"),
    file("gone/b"),
    folder("replaced"),
    file("replaced/old"),
    folder("same"),
    file("same/untouched", "x" * 1000),
)
CHANGE = both(
    file("etc/hosts", "2"),
    chown("etc/hosts", 7, 8),
    remove("gone"),
    remove("replaced"),
    folder("replaced", 0o700),
    file("replaced/new", "n"),
    folder("new"),
    file("new/suid", "s", 0o4755),
    file("new/cap", "c", 0o755),
    xattr("new/cap", "security.capability", CAPABILITY),
    link("new/suid", "new/z-link"),
    symlink("../etc/hosts", "new/sym"),
    device("new/null", stat.S_IFCHR, 1, 3),
    device("new/fifo", stat.S_IFIFO, 0, 0),
    file("new/" + "ä" * 60, "long"),
    file("new/" + "n" * 120, "longer"),
)


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: info for info in tar}


def at(seconds: int, *paths: str) -> Change:
    """Sets the times of paths."""

    def change(root: Path) -> None:
        for path in paths:
            os.utime(root / path, (seconds, seconds), follow_symlinks=False)

    return change


async def views(house: House) -> tuple[list[Mount], list[Mount]]:
    lower = await house.snapshotter.view("lower", "base", {})
    upper = await house.snapshotter.view("upper", "changed", {})
    return list(lower), list(upper)


@pytest.fixture
async def changed(house: House) -> House:
    await house.layer("base", "", BASE)
    await house.layer("changed", "base", CHANGE)
    return house


async def test_what_is_in_a_layer(changed: House) -> None:
    house = changed
    descriptor = await house.diff(*await views(house), media_type=OCI)
    data = await house.read(descriptor)
    found = members(data)
    wanted = ["etc", "etc/hosts", ".wh.gone", "new", "new/cap", "new/fifo", "new/" + "n" * 120]
    wanted += ["new/null", "new/suid", "new/sym", "new/z-link", "new/" + "ä" * 60]
    wanted += ["replaced", "replaced/new", "replaced/.wh.old"]
    assert list(found) == wanted
    hosts = found["etc/hosts"]
    assert (hosts.uid, hosts.gid, hosts.size) == (7, 8, 1)
    assert found["new/suid"].mode == 0o4755
    assert (found["new/z-link"].type, found["new/z-link"].linkname) == (b"1", "new/suid")
    assert found["new/sym"].linkname == "../etc/hosts"
    assert (found["new/null"].devmajor, found["new/null"].devminor) == (1, 3)
    held = found["new/cap"].pax_headers["SCHILY.xattr.security.capability"]
    assert held.encode("utf-8", "surrogateescape") == CAPABILITY
    assert (found[".wh.gone"].mtime, found[".wh.gone"].mode) == (0, 0)
    assert descriptor.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_a_layer_applied_again(changed: House) -> None:
    house = changed
    descriptor = await house.diff(*await views(house))
    mounts = await house.snapshotter.prepare("again", "base", {})
    applied = await house.apply(descriptor, mounts)
    info = await house.info(descriptor)
    assert info.labels["containerd.io/uncompressed"] == applied.digest
    with mounted(mounts, house.tmp_path / "again") as again:
        upper = await house.snapshotter.mounts("upper")
        with mounted(upper, house.tmp_path / "upper") as original:
            assert contents(again) == contents(original)


async def test_active_snapshots_while_mounted(changed: House) -> None:
    house = changed
    lower, _ = await views(house)
    upper = await house.snapshotter.prepare("active", "base", {})
    with mounted(upper, house.tmp_path / "mnt") as root:
        file("etc/new", "1")(root)
        found = members(await house.read(await house.diff(lower, upper, media_type=OCI)))
        file("etc/still", "writable")(root)
    assert list(found) == ["etc", "etc/new"]


@pytest.mark.parametrize(
    ("media_type", "decompress"),
    [
        ("", gzip.decompress),
        (OCI_GZIP, gzip.decompress),
        (OCI, bytes),
        (OCI_ZSTD, lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ],
)
async def test_compressions(changed: House, media_type: str, decompress: object) -> None:
    assert callable(decompress)
    house = changed
    descriptor = await house.diff(*await views(house), media_type=media_type, labels={"l": "1"})
    assert descriptor.media_type == (media_type or OCI_GZIP)
    data = decompress(await house.read(descriptor))
    labels = dict((await house.info(descriptor)).labels)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert labels.pop("containerd.io/uncompressed", digest) == digest
    assert labels == {"l": "1"}
    assert "new/suid" in members(data)


async def test_the_same_twice_is_the_same(changed: House) -> None:
    house = changed
    mounts = await views(house)
    first, second = await house.diff(*mounts), await house.diff(*mounts)
    assert first == second
    assert await house.stores.content.statuses(SCOPE) == []


async def test_source_date_epoch(changed: House) -> None:
    house = changed
    await house.layer("changed2", "changed", at(500, "etc/hosts"))
    upper = await house.snapshotter.view("upper2", "changed2", {})
    lower, _ = await views(house)
    descriptor = await house.diff(lower, upper, media_type=OCI, source_date_epoch=1000)
    found = members(await house.read(descriptor))
    assert found["etc/hosts"].mtime == 500
    assert found["new/suid"].mtime == 1000


async def test_an_empty_difference(changed: House) -> None:
    house = changed
    lower, _ = await views(house)
    other = await house.snapshotter.view("other", "base", {})
    descriptor = await house.diff(lower, other, media_type=OCI)
    assert await house.read(descriptor) == bytes(1024)


async def test_everything_over_nothing(changed: House) -> None:
    house = changed
    lower, _ = await views(house)
    empty = await house.snapshotter.view("empty", "", {})
    whole = await house.diff([], lower, media_type=OCI)
    assert await house.diff(empty, lower, media_type=OCI) == whole
    assert "same/untouched" in members(await house.read(whole))


async def test_same_seconds_and_size_are_told_by_contents(house: House) -> None:
    names = ("changed", "same")
    await house.layer("base", "", both(*(file(name, "abc") for name in names), at(1000, *names)))
    change = both(file("changed", "xyz"), file("same", "abc"), at(1000, *names))
    await house.layer("changed", "base", change)
    found = members(await house.read(await house.diff(*await views(house), media_type=OCI)))
    assert list(found) == ["changed"]


async def test_a_new_name_of_an_old_file(house: House) -> None:
    """The new name carries the contents, and the old one becomes a link to it."""
    await house.layer("base", "", both(folder("d"), file("d/old", "data"), at(1000, "d/old")))
    await house.layer("changed", "base", link("d/old", "new"))
    found = members(await house.read(await house.diff(*await views(house), media_type=OCI)))
    assert found["new"].size == 4
    assert found["d/old"].linkname == "new"


async def test_a_ref_is_started_over(changed: House) -> None:
    house = changed
    writer = await house.stores.content.writer(SCOPE, "mine")
    await writer.write(b"left over")
    await writer.close()
    descriptor = await house.diff(*await views(house), media_type=OCI, ref="mine")
    assert "new/suid" in members(await house.read(descriptor))
    assert await house.stores.content.statuses(SCOPE) == []


async def test_what_is_refused(changed: House) -> None:
    house = changed
    lower, upper = await views(house)
    with pytest.raises(Unimplemented, match="unsupported diff media type"):
        await house.diff(lower, upper, media_type="application/x-bzip2")
    with pytest.raises(InvalidArgument, match="right"):
        await house.diff(lower, [])
    bad = [Mount("overlay", "overlay", ("lowerdir=/nowhere:/nowhere2",))]
    with pytest.raises(Exception, match="overlay"):
        await house.diff(lower, bad)
    assert await house.stores.content.statuses(SCOPE) == []


@pytest.mark.parametrize("house", ["overlayfs"], indirect=True)
async def test_walking_only_the_upper_directory_is_the_same(changed: House) -> None:
    house = changed
    lower, upper = await views(house)
    assert upper[0].type == "overlay"
    quick = await house.diff(lower, upper, media_type=OCI)
    with mounted(lower, house.tmp_path / "elsewhere") as elsewhere:
        slow = await house.diff(
            [Mount("bind", str(elsewhere), ("ro", "rbind"))], upper, media_type=OCI
        )
    assert slow == quick


@pytest.mark.parametrize("house", ["overlayfs"], indirect=True)
async def test_uppers_with_redirects_and_metadata_only(house: House) -> None:
    """A moved folder, a file in one that was moved twice, and a copied-up file without contents."""
    await house.layer("base", "", BASE)
    (overlay,) = await house.snapshotter.prepare("active", "base", {})
    options = (*overlay.options, "redirect_dir=on", "metacopy=on")
    upper = [Mount(overlay.type, overlay.source, options)]
    with mounted(upper, house.tmp_path / "mnt") as root:
        (root / "etc").rename(root / "moved")
        (root / "moved/hosts").write_text("changed")
        (root / "moved").rename(root / "again")
        (root / "again/passwd").chmod(0o600)
        (root / "same/untouched").chmod(0o640)
        wanted = contents(root)
    own = next(option for option in options if option.startswith("upperdir="))
    untouched = Path(own.removeprefix("upperdir=")) / "same/untouched"
    assert "trusted.overlay.metacopy" in os.listxattr(untouched), "the test tests nothing"
    assert untouched.read_bytes() == bytes(1000)
    lower = await house.snapshotter.view("lower", "base", {})
    layer = await house.diff(lower, upper)
    mounts = await house.snapshotter.prepare("applied", "base", {})
    await house.apply(layer, mounts)
    with mounted(mounts, house.tmp_path / "mnt") as root:
        assert contents(root) == wanted
