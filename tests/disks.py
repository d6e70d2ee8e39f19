"""File systems of their own for tests: a sparse file, formatted and mounted by a loop device that
goes with the mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisord.linux.mount import mount_points, unmount_all


@contextmanager
def disk(folder: Path, kind: str, *options: str, size: int = 256 << 20) -> Iterator[Path]:
    """A file system of ``kind`` with ``size`` bytes, mounted below ``folder``, which is made; a
    tmpfs needs no file."""
    if kind == "tmpfs":
        with _tmpfs(folder / kind, size) as target:
            yield target
        return
    image, target = folder / f"{kind}.img", folder / kind
    target.mkdir(parents=True)
    with open(image, "wb") as out:
        out.truncate(size)
    command([f"mkfs.{kind}", "-q", *options, str(image)])
    command(["mount", "-t", kind, "-o", "loop", str(image), str(target)])
    try:
        yield target
    finally:
        for point in reversed(mount_points()):
            if point == str(target) or point.startswith(f"{target}/"):
                unmount_all(point)
        image.unlink()


@contextmanager
def _tmpfs(target: Path, size: int) -> Iterator[Path]:
    target.mkdir(parents=True)
    command(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)])
    try:
        yield target
    finally:
        unmount_all(str(target))


def command(words: list[str]) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert not done.returncode, f"{words}: {done.stderr.decode(errors='replace')}"


def devices_of(image: Path) -> list[str]:
    """The loop devices over a file, by their names in /dev."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().rstrip("\n") == str(image):
                found.append(backing.parent.parent.name)
        except OSError:  # it was cleared meanwhile
            continue
    return found
