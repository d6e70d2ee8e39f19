"""``ctr content``: ingest, get, label, list, remove; and ``ctr leases``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from .ctr import Ctr
from .fixtures import IMAGE
from .ocitar import Image, sha256


def test_ingest_and_get_are_exact(ctr: Ctr) -> None:
    data = os.urandom(3_000_001)
    ctr("content", "ingest", "--expected-digest", sha256(data), "ref", input=data)
    done = ctr.raw("content", "get", sha256(data))
    assert done.returncode == 0
    assert done.stdout == data
    assert ctr("content", "ls", "-q").out.split() == [sha256(data)]


def test_ingest_with_another_digest_is_refused_and_loses_nothing(ctr: Ctr) -> None:
    ctr("content", "ingest", "first", input=b"first")
    done = ctr.raw("content", "ingest", "--expected-digest", sha256(b"x"), "ref", input=b"data")
    assert done.returncode != 0
    assert b"unexpected commit digest" in done.stderr
    assert ctr("content", "ls", "-q").out.split() == [sha256(b"first")]
    assert ctr.raw("content", "get", sha256(b"first")).stdout == b"first"


def test_ingest_with_another_size_is_refused(ctr: Ctr) -> None:
    done = ctr.raw("content", "ingest", "--expected-size", "7", "ref", input=b"data")
    assert done.returncode != 0
    assert ctr("content", "ls", "-q").out == ""


def test_label_and_list_with_filter(ctr: Ctr) -> None:
    digest = sha256(b"data")
    ctr("content", "ingest", "ref", input=b"data")
    ctr("content", "ingest", "ref2", input=b"other")
    ctr("content", "label", digest, "a=b", "c=d")
    rows = {row[0]: row[-1] for row in ctr("content", "ls").rows()}
    assert set(rows[digest].split(",")) == {"a=b", "c=d"}
    ctr("content", "label", digest, "a=")
    rows = {row[0]: row[-1] for row in ctr("content", "ls").rows()}
    assert rows[digest] == "c=d"
    assert ctr("content", "ls", "-q", "labels.c==d").out.split() == [digest]
    assert ctr("content", "ls", "-q", f"digest=={digest}").out.split() == [digest]


def test_remove(ctr: Ctr) -> None:
    digest = sha256(b"data")
    ctr("content", "ingest", "ref", input=b"data")
    assert ctr("content", "rm", digest).out.split() == [digest]
    assert ctr("content", "ls", "-q").out == ""
    ctr.refused("content", "get", digest, says="not found")


def test_active_ingests_are_listed(ctr: Ctr) -> None:
    with ctr.background("content", "ingest", "slow-ref") as process:
        assert process.stdin is not None
        process.stdin.write(os.urandom(3 << 20))
        process.stdin.flush()
        for _ in range(100):
            rows = ctr("content", "active").rows()
            if rows:
                break
            time.sleep(0.02)
        assert rows[0][0] == "slow-ref"


def test_lease_create_list_remove(ctr: Ctr, unique: str) -> None:
    assert ctr("leases", "create", "--id", unique, "-x", "1h", "a=b").out.split() == [unique]
    (row,) = ctr("leases", "ls").rows()
    assert row[0] == unique
    labels = dict(pair.split("=", 1) for pair in row[-1].split(","))
    assert labels["a"] == "b"
    assert labels["containerd.io/gc.expire"].startswith("20")
    ctr.refused("leases", "create", "--id", unique, says="already exists")
    assert ctr("leases", "ls", "-q").out.split() == [unique]
    assert ctr("leases", "rm", "--sync", unique).out.split() == [unique]
    ctr.refused("leases", "rm", unique, says="not found")
    assert ctr("leases", "ls").rows() == []


def test_lease_without_an_id_gets_one(ctr: Ctr) -> None:
    first = ctr("leases", "create").out.strip()
    second = ctr("leases", "create").out.strip()
    assert first
    assert second
    assert first != second
    assert set(ctr("leases", "ls", "-q").out.split()) == {first, second}


def test_expired_lease_is_collected(ctr: Ctr, unique: str) -> None:
    ctr("leases", "create", "--id", unique, "-x", "1s")
    time.sleep(1.2)
    other = ctr("leases", "create").out.strip()
    ctr("leases", "rm", "--sync", other)
    assert ctr("leases", "ls", "-q").out == ""


def test_what_an_image_leaves_is_collected(ctr: Ctr, image_tar: Path, image: Image) -> None:
    """Content and snapshots stay while an image or a lease holds them, and no longer."""
    ctr("i", "import", str(image_tar))
    ctr("content", "ingest", "loose", input=b"nothing refers to this")
    lease = ctr("leases", "create").out.strip()
    ctr("leases", "rm", "--sync", lease)
    assert set(ctr("content", "ls", "-q").out.split()) == set(image.blobs)
    ctr("i", "rm", IMAGE)
    lease = ctr("leases", "create").out.strip()
    ctr("leases", "rm", "--sync", lease)
    assert ctr("content", "ls", "-q").out == ""
    assert ctr("snapshots", "ls").rows() == []


def test_container_holds_its_snapshot_and_parents(
    ctr: Ctr, image_tar: Path, image: Image, unique: str
) -> None:
    ctr("i", "import", str(image_tar))
    ctr("c", "create", IMAGE, unique, "true")
    ctr("i", "rm", "--sync", IMAGE)
    names = {row[0] for row in ctr("snapshots", "ls").rows()}
    assert names == {unique, *image.chain_ids}
    ctr("c", "rm", unique)
    lease = ctr("leases", "create").out.strip()
    ctr("leases", "rm", "--sync", lease)
    assert ctr("snapshots", "ls").rows() == []


@pytest.mark.parametrize("digest", ["sha256:abc", "nonsense", "md5:" + "0" * 32])
def test_malformed_digest_is_refused(ctr: Ctr, digest: str) -> None:
    ctr.refused("content", "get", digest)
