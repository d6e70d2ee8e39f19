"""Wheels and editable installs generate the stubs; nothing needs them to be there before."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_IGNORED = shutil.ignore_patterns("__pycache__", "*_pb2*", ".stubs*", "*.egg-info")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources as a fresh clone has them, without stubs."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("supervisord", "shims", "snapshotters", "protos"):
        shutil.copytree(ROOT / name, copy / name, ignore=_IGNORED)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    assert list(copy.rglob("*_pb2.py")) == []
    return copy


def build(tree: Path, kind: str) -> zipfile.ZipFile:
    """What an installer asks the build backend for."""
    script = f"from setuptools.build_meta import build_{kind}; print(build_{kind}('out'))"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return zipfile.ZipFile(tree / "out" / ran.stdout.splitlines()[-1])


def test_a_wheel_has_stubs_types_and_commands(tree: Path) -> None:
    with build(tree, "wheel") as wheel:
        names = set(wheel.namelist())
        (commands,) = [name for name in names if name.endswith("entry_points.txt")]
        text = wheel.read(commands).decode()
    sources = [path.relative_to(tree) for path in (tree / "protos").rglob("*.proto")]
    wanted = {f"{source.with_suffix('')}_pb2{end}" for source in sources for end in (".py", ".pyi")}
    wanted |= {str(source) for source in sources}
    wanted |= {f"{room}/py.typed" for room in ("supervisord", "shims", "snapshotters", "protos")}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/"))]
    for command in ("supervisord", "sctl", "containerd-shim-supervisord-v2"):
        assert f"{command} = " in text


def test_an_editable_install_generates_stubs_in_place(tree: Path) -> None:
    build(tree, "editable").close()
    for source in (tree / "protos").rglob("*.proto"):
        assert source.with_name(f"{source.stem}_pb2.py").is_file(), source
