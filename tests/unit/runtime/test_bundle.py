"""Bundles on disk: made, found, discarded, and never walked into while mounted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.snapshots import Mount
from supervisord.linux import mount
from supervisord.runtime.bundle import BundleStore, ExitRecord, ShimRecord

from .conftest import needs_root

SPEC = b'{"process": {"args": ["true"]}}'
OTHER = b'{"process": {}}'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BundleStore]:
    store = BundleStore(str(tmp_path))
    store.prepare()
    yield store
    for point in reversed(mount.mount_points()):
        if point.startswith(f"{tmp_path}/"):
            mount.unmount_all(point)


def test_made_and_found(store: BundleStore) -> None:
    bundle = store.create("ns", "web", SPEC)
    assert Path(bundle.path, "config.json").read_bytes() == SPEC
    assert Path(bundle.path).stat().st_mode & 0o777 == 0o700
    assert bundle.read_record() is None
    record = ShimRecord("/run/s/x", pid=3, start_time=4, init_pid=5, init_start=6)
    bundle.write_record(record)
    assert bundle.read_record() == record
    assert list(store.all()) == [bundle]


def test_records_of_other_releases(store: BundleStore) -> None:
    bundle = store.create("ns", "web", SPEC)
    Path(bundle.path, "shim.json").write_text('{"address": "/x", "from_the_future": 1}')
    assert bundle.read_record() == ShimRecord("/x")


def test_exits_that_the_shim_wrote(store: BundleStore) -> None:
    bundle = store.create("ns", "web", SPEC)
    exits = Path(bundle.path, "exits")
    values = {"pid": 1, "exit_status": 2, "exited_at_ns": 3}
    for name in ("init", "init_", "x1"):
        (exits / f"{name}.json").write_text(json.dumps(values | {"pid": len(name)}))
    (exits / "bad.json").write_text("{")
    assert bundle.read_exit("") == ExitRecord(4, 2, 3)
    assert bundle.read_exit("init") == ExitRecord(5, 2, 3)
    assert bundle.read_exit("x1") == ExitRecord(2, 2, 3)
    assert bundle.read_exit("bad") is bundle.read_exit("none") is None


def test_one_in_the_way_is_set_aside(store: BundleStore) -> None:
    store.create("ns", "web", SPEC)
    store.create("ns", "web", OTHER)
    (leftover,) = store.leftovers
    assert Path(leftover, "config.json").read_bytes() == SPEC
    store.empty(leftover)
    assert not Path(leftover).exists()


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"process": {"args": ["\xff"]}}',
        b'{"process": {}, "linux": {"uidMappings": [{"containerID": 0, "hostID": 9, "size": 9}]}}',
    ],
)
def test_specs_that_are_none(store: BundleStore, spec: bytes) -> None:
    with pytest.raises(InvalidArgument, match="spec"):
        store.create("ns", "web", spec)
    assert not list(store.all())
    assert not os.listdir(store.trash)


def test_a_spec_nested_without_end(store: BundleStore) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    for spec in (deep, b'{"process": {}, "hooks": %b}' % deep):
        with pytest.raises(InvalidArgument, match=r"^spec: must"):
            store.create("ns", "web", spec)
    assert not list(store.all())


@needs_root
def test_a_mapped_root_may_enter(store: BundleStore) -> None:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec = {"process": {}, "linux": {"uidMappings": mapping, "gidMappings": mapping}}
    stat = Path(store.create("ns", "web", json.dumps(spec).encode()).path).stat()
    assert stat.st_gid == 100000
    assert stat.st_mode & 0o777 == 0o710


@needs_root
def test_what_is_mounted_is_not_deleted(store: BundleStore, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "inner").mkdir(parents=True)
    (precious / "file").touch()
    bundle = store.create("ns", "web", SPEC)
    mount.mount_all([Mount("bind", str(precious), ("rbind",))], bundle.rootfs)
    deep = Path(bundle.path, "other")
    deep.mkdir()
    mount.mount_all([Mount("bind", str(precious), ("rbind",))], str(deep))
    mount.mount_all([Mount("bind", str(precious), ("rbind",))], f"{bundle.rootfs}/inner")
    trash = store.discard(bundle)
    assert not list(store.all())
    store.empty(trash)
    assert not Path(trash).exists()
    assert sorted(os.listdir(precious)) == ["file", "inner"]


def test_discarding_nothing(store: BundleStore) -> None:
    assert store.discard(store.bundle("ns", "none")) == ""
    store.empty("")
    store.empty(f"{store.trash}/none")


def test_the_trash_of_an_earlier_run(store: BundleStore) -> None:
    store.discard(store.create("ns", "web", SPEC))
    assert store.empty_all() == []
    assert not os.listdir(store.trash)
