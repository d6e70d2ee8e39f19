"""A layer of a tree that is deeper than any stack and any path."""

from __future__ import annotations

import io
import os
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shims.unpack.changes import Walk
from shims.unpack.layer import LayerWriter
from supervisord.linux.trees import remove_tree

DEPTH = 1500
FOLDER = os.O_RDONLY | os.O_DIRECTORY


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """As the worker allows itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def nested(top: Path, *, filled: bool) -> int:
    """``DEPTH`` folders in each other, the last ``filled`` or empty; a descriptor of the top."""
    top.mkdir()
    fd = os.open(top, FOLDER)
    for _ in range(DEPTH):
        os.mkdir("folder", dir_fd=fd)
        below = os.open("folder", FOLDER, dir_fd=fd)
        os.utime(below, (1, 1))
        os.close(fd)
        fd = below
    if filled:
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    return os.open(top, FOLDER)


def test_the_last_file_is_new(tmp_path: Path) -> None:
    lower, upper = nested(tmp_path / "a", filled=False), nested(tmp_path / "b", filled=True)
    out = bytearray()
    try:
        LayerWriter(Walk(lower, upper), out.extend).run()
    finally:
        os.close(lower)
        os.close(upper)
        remove_tree(str(tmp_path / "a"))
        remove_tree(str(tmp_path / "b"))
    with tarfile.open(fileobj=io.BytesIO(bytes(out))) as layer:
        names = layer.getnames()
    assert len(names) == DEPTH + 1
    assert names[-1] == "folder/" * DEPTH + "new"
