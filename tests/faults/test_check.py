"""``sctl check``, ``supervisord check``, backups and restores, on damaged storage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import REPOSITORY, Supervisord
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire

NAMESPACE = "default"
NAME = "docker.io/test/busybox:1"


class Box:
    """A daemon with an image, the commands, and the files that the tests damage."""

    def __init__(self, image_tar: Path) -> None:
        self.daemon = Supervisord()
        self.daemon.start(timeout=60)
        self.image_tar = image_tar
        self.load()
        root = self.daemon.root
        self.metadata = root / "io.containerd.metadata.v1.sqlite/metadata.db"
        self.blobs = root / "io.containerd.content.v1.content/blobs/sha256"
        self.overlay = root / "io.containerd.snapshotter.v1.overlayfs"

    def load(self) -> None:
        Ctr(self.daemon.address, NAMESPACE)("i", "import", str(self.image_tar))

    def _run(self, *command: str) -> tuple[int, str]:
        ran = subprocess.run(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
            timeout=60, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout

    def sctl(self, *words: str) -> tuple[int, str]:
        return self._run("supervisord.cli.main", "--address", self.daemon.address, *words)

    def supervisord(self, *words: str) -> tuple[int, str]:
        root, state = str(self.daemon.root), str(self.daemon.state)
        return self._run("supervisord.daemon.main", *words, "--root", root, "--state", state)

    def found(self, *words: str) -> list[tuple[str, str, bool]]:
        """What a check finds, of the running daemon or of none."""
        running = self.daemon.process is not None
        command = self.sctl if running else self.supervisord
        status, said = command("check", "--format", "json", *words)
        answer: dict[str, Any] = json.loads(said)
        assert status == (2 if answer["left"] else 0), said
        return [(f["kind"], f["problem"], f["repaired"]) for f in answer["findings"]]

    def wire(self) -> Wire:
        return Wire(self.daemon.address, NAMESPACE, ours=True)


@pytest.fixture
def box(image_tar: Path) -> Iterator[Box]:
    made = Box(image_tar)
    try:
        yield made
    finally:
        made.daemon.close()


def damaged(path: Path) -> None:
    """One bit of it is another."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o600)
    path.write_bytes(data)


def test_damage_is_found_repaired_and_fetched_again(box: Box, image: Image) -> None:
    status, said = box.sctl("check")
    assert (status, said.count("\n")) == (0, 1)
    assert said.startswith("All is well: 6 blobs, ") and "3 snapshots of overlayfs" in said
    first, second, *_ = sorted(box.blobs.iterdir(), key=lambda path: path.stat().st_size)
    damaged(first)
    second.unlink()
    shutil.rmtree(box.overlay / "snapshots/3")
    (box.overlay / "snapshots/99").mkdir()
    status, said = box.sctl("check")
    assert status == 2
    assert f"DAMAGED     blob sha256:{first.name} in {NAMESPACE}\n" in said
    assert f"MISSING     blob sha256:{second.name}" in said
    where = f"overlayfs: {box.overlay}/snapshots/3/fs"
    assert f"{image.chain_ids[2]} in {NAMESPACE}\n            {where} is gone" in said
    assert said.splitlines()[-1].startswith("4 problems, 0 repaired")
    problems = {("blob", "damaged"), ("blob", "missing"), ("snapshot", "missing")}
    found = box.found("--repair")
    assert {each[:2] for each in found} == problems | {("folder", "orphan")}
    assert all(done for *_, done in found)
    assert box.found() == []
    assert (first.parents[2] / "quarantine" / f"sha256-{first.name}").exists()
    box.load()  # a client fetches what is not there, and unpacks it
    assert box.found() == []
    assert first.exists() and second.exists()
    ran = Ctr(box.daemon.address, NAMESPACE)("run", "--rm", NAME, "c", "echo", "fine")
    assert "fine" in ran.out
    wire = box.wire()
    sweep.namespace(wire)
    wire.close()


def test_a_layer_below_a_writable_snapshot_is_left_to_people(box: Box, image: Image) -> None:
    wire = box.wire()
    wire.prepare("rw", image.chain_ids[-1])
    wire.close()
    shutil.rmtree(box.overlay / "snapshots/1/fs")
    assert box.found("--repair") == [("snapshot", "missing", False)]
    status, said = box.sctl("check", "--repair")
    assert status == 2 and "writable snapshots stand on it" in said
    assert (box.overlay / "snapshots/4/fs").is_dir()


def test_a_destroyed_database_is_refused_explained_and_made_anew(box: Box, image: Image) -> None:
    wire = box.wire()
    wire.prepare("rw", image.chain_ids[-1])
    wire.close()
    (box.overlay / "snapshots/4/fs/precious").write_text("data")
    status, said = box.supervisord("check")
    assert (status, said.count("\n")) == (1, 1) and "another supervisord (pid" in said
    assert box.daemon.stop() == 0
    box.metadata.write_bytes(b"nonsense" * 512)
    with pytest.raises(AssertionError, match=r"supervisord restore BACKUP.*check --repair"):
        box.daemon.start()
    box.daemon.process = None
    status, said = box.supervisord("check")
    assert status == 2 and f"DAMAGED     database {box.metadata}" in said
    found = box.found("--repair")
    assert found.count(("blob", "orphan", True)) == 6
    assert found.count(("snapshot", "orphan", True)) == 4
    assert found.count(("database", "damaged", True)) == 1
    assert box.found() == []
    box.daemon.start(timeout=60)
    assert box.found() == []
    assert "recovered" in box.sctl("leases", "ls")[1]
    wire = box.wire()
    assert sweep.names(wire, "overlayfs")["rw"] == image.chain_ids[-1]
    assert (box.overlay / "snapshots/4/fs/precious").read_text() == "data"
    box.load()  # finds all that it needs
    sweep.namespace(wire)
    wire.close()


def test_a_database_with_damaged_pages_loses_no_more_than_those(box: Box) -> None:
    wire = box.wire()
    for number in range(60):
        wire.container_record(f"c{number:02}", labels={"mark-of-rows": "x" * 300})
    wire.close()
    assert box.daemon.stop() == 0
    with box.metadata.open("r+b") as file:
        data = file.read()
        page = next(
            at for at in range(4096, len(data), 4096) if b"mark-of-rows" in data[at : at + 4096]
        )
        file.seek(page)
        file.write(b"\xee" * 4096)
    box.daemon.start(timeout=60)  # what is on other pages is served meanwhile
    listed = box.sctl("containers", "ls", "--quiet")[1].split()
    assert 50 <= len(listed) < 60 and listed == sorted(listed)
    assert "rows on damaged pages are left out" in box.daemon.log_tail(20_000)
    assert ("database", "damaged", False) in box.found()
    assert box.daemon.stop() == 0
    assert ("database", "damaged", True) in box.found("--repair")
    assert box.found() == []
    box.daemon.start(timeout=60)
    left = box.sctl("containers", "ls", "--quiet")[1].split()
    assert 50 <= len(left) < 60
    assert box.sctl("images", "ls", "--quiet")[1].split() == [NAME]


def test_a_backup_brings_back_names_and_costs_nothing_newer(box: Box, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    stop = threading.Event()
    wire = box.wire()

    def write() -> None:
        number = 0
        while not stop.is_set():
            wire.prepare(f"during-{number}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        status, said = box.sctl("backup", str(archive))
    finally:
        stop.set()
        writer.join()
    assert status == 0, said
    wire.prepare("newer")
    wire.close()
    assert box.daemon.stop() == 0
    assert not [path for path in box.daemon.root.iterdir() if path.name.startswith(".backup")]
    for file in box.metadata.parent.glob("metadata.db*"):
        file.unlink()
    status, said = box.supervisord("restore", str(archive))
    assert status == 0 and f"{box.metadata}: as of " in said
    assert box.found() == []
    box.daemon.start(timeout=60)
    wire = box.wire()
    assert box.sctl("images", "ls", "--quiet")[1].split() == [NAME]
    assert "newer" in sweep.names(wire, "overlayfs")
    sweep.namespace(wire)
    wire.close()
    assert box.daemon.stop() == 0
    shutil.rmtree(box.overlay)  # the index goes with it: then the backup's is the best
    (box.overlay / "snapshots").mkdir(parents=True)
    assert box.supervisord("restore", str(archive))[0] == 0
    assert (box.overlay / "metadata.sqlite").stat().st_size > 4096
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"nothing")
    status, said = box.supervisord("restore", str(nothing))
    assert (status, said.count("\n")) == (1, 1) and "is no backup" in said
