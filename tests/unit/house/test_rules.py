"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import supervisord

ROOT = Path(supervisord.__file__).parent.parent
ROOMS = ("supervisord", "shims", "snapshotters")
HEAVY = {"aiofiles", "aiohttp", "grpc", "msgspec", "prometheus_client", "pyroute2", "rich"}
VAGUE = re.compile(r"(utils?|helpers?|common|misc)\.py")


def sources() -> list[Path]:
    """Every module that we wrote."""
    return [
        path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.is_file()
    ]


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after ``statement``."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources()
        if path.is_relative_to(ROOT / "shims") and path.name != "__main__.py"
    ],
)
def test_what_the_zygote_may_import_stays_light(module: str) -> None:
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_the_cli_parses_without_heavy_libraries() -> None:
    heavy = {"aiohttp", "pyroute2", "prometheus_client", "grpc", "rich"}
    assert loaded_by("import supervisord.cli.main") & heavy == set()


def _spawns(tree: ast.AST) -> Iterator[int]:
    raw = {"create_task", "ensure_future"}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in raw:
                yield node.lineno
            case ast.ImportFrom(module="asyncio", names=names) if raw & {n.name for n in names}:
                yield node.lineno


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module(path: Path) -> None:
    """Has a docstring, a telling name and a sane length; only aio spawns tasks."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "no module docstring"
    assert not VAGUE.fullmatch(path.name), "a name that explains nothing"
    assert text.count("\n") <= 500, "over 500 lines: more than one noun or verb?"
    if not path.is_relative_to(ROOT / "supervisord/aio"):
        assert list(_spawns(tree)) == [], "tasks are spawned through TaskOwner"


def test_the_lock_holds_names_versions_and_hashes_only() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pin = r"[a-z0-9-]+==[\w.+!]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"({pin})+", lock)


def test_the_lock_has_what_the_project_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    wanted += project["build-system"]["requires"]
    names = {re.split(r"[<>=!~ \[;]", requirement)[0].lower() for requirement in wanted}
    assert names - locked == set()


def test_console_scripts_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, target in project["project"]["scripts"].items():
        entry = importlib.metadata.EntryPoint(name, target, "console_scripts")
        assert callable(entry.load()), name
