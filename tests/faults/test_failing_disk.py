"""The disk fails, or becomes read-only under the daemon: a write is refused with its reason, what
can be read is served, and a start says what is wrong.

An ext4 in a file is made to give up as it does after an error of its disk (``remount,abort``): from
then on each write fails, whoever has the file open.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.conformance.daemons import REPOSITORY, Supervisord
from tests.conformance.wire import Wire
from tests.disks import disk

from .stored import Stored, digest_of

_Code = grpc.StatusCode
REFUSED = {_Code.UNKNOWN, _Code.FAILED_PRECONDITION}
DATA = b"d" * 50_000


@contextlib.contextmanager
def on_ext4() -> Iterator[tuple[Supervisord, Path]]:
    """A daemon whose root is on a disk of its own, not yet started."""
    with (
        tempfile.TemporaryDirectory(prefix="failing-") as base,
        disk(Path(base), "ext4", size=64 << 20) as place,
    ):
        daemon = Supervisord()
        daemon.root = place / "root"
        try:
            yield daemon, place
        finally:
            daemon.close()


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True, capture_output=True)


def test_a_disk_that_fails_under_the_daemon() -> None:
    with on_ext4() as (daemon, place):
        daemon.start(timeout=60)
        wire = Wire(daemon.address, "failing", ours=True)
        stored = Stored(wire)
        digest = stored.write("kept", DATA)
        stored.image("image", DATA)
        stored.prepare("overlayfs", "snapshot")
        remount(place, "abort")
        attempts: tuple[Callable[[], object], ...] = (
            lambda: stored.write("new", b"n" * 50_000),
            lambda: stored.image("new", DATA),
            lambda: stored.prepare("overlayfs", "new"),
            lambda: stored.prepare("native", "new"),
            lambda: stored.lease("new"),
            lambda: stored.delete_image("image"),
            lambda: stored.commit("overlayfs", "committed", "snapshot"),
        )
        for number, attempt in enumerate(attempts):
            with pytest.raises(grpc.RpcError) as caught:
                attempt()
            assert caught.value.code() in REFUSED, (number, caught.value.details())
            assert caught.value.details()
        assert stored.images() == {"image"}
        assert stored.blobs() == {digest}
        assert stored.read(digest) == DATA  # from memory, at least
        assert stored.snapshots("overlayfs") == {"snapshot"}
        assert stored.snapshots("native") == set()
        wire.close()
        daemon.kill()
        deadline = time.monotonic() + 20
        while daemon.processes():  # its zygote has the disk in a mount namespace of its own
            assert time.monotonic() < deadline
            time.sleep(0.05)
        subprocess.run(["umount", place], check=True)
        image = place.parent / "ext4.img"
        subprocess.run(["fsck.ext4", "-fy", image], check=False, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        daemon.start(timeout=60)
        wire = Wire(daemon.address, "failing", ours=True)
        stored = Stored(wire)
        assert stored.read(digest) == DATA
        assert stored.images() == {"image"}
        assert stored.write("new", b"n" * 50_000) == digest_of(b"n" * 50_000)
        wire.close()


def test_a_root_that_cannot_be_written_is_refused_in_one_line() -> None:
    with on_ext4() as (daemon, place):
        daemon.start(timeout=60)
        assert daemon.stop() == 0
        remount(place, "ro")
        os.truncate(daemon.log, 0)
        with pytest.raises(AssertionError, match="did not start"):
            daemon.start(timeout=60)
        daemon.process = None
        said = [line for line in daemon.log.read_text().splitlines() if "level=" not in line]
        assert len(said) == 1, said
        assert "Read-only file system" in said[0] and str(daemon.root) in said[0]
        command = [sys.executable, "-m", "supervisord.daemon.main", "check"]
        ran = subprocess.run(
            [*command, "--root", str(daemon.root)],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 1 and "Traceback" not in ran.stderr
        remount(place, "rw")
        daemon.start(timeout=60)
