from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .forks import Forks

Apply = Callable[..., Any]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    opened = Forks()
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that layers are applied to, with a file beside it that must stay alone."""
    (tmp_path / "outside").write_text("untouched")
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def apply(forks: Forks, root: Path, tmp_path: Path) -> Iterator[Apply]:
    """Applies a layer to ``root``, as a bind mount, and answers the worker's result."""

    def run(blob: bytes, **arguments: object) -> Any:
        mount = {"type": "bind", "source": str(root), "options": ["rw", "rbind"]}
        return forks.run(blob, [mount], **arguments)

    yield run
    assert (tmp_path / "outside").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "root", "upper", "lower"}


@pytest.fixture
def apply_overlay(forks: Forks, root: Path, tmp_path: Path) -> Apply:
    """As ``apply``, with ``root`` as the upper directory of an overlay over ``lower``."""
    lower = tmp_path / "lower"
    lower.mkdir()

    def run(blob: bytes, *options: str) -> Any:
        all_options = [f"upperdir={root}", "workdir=/nowhere", f"lowerdir={lower}", *options]
        return forks.run(blob, [{"type": "overlay", "source": "overlay", "options": all_options}])

    return run
