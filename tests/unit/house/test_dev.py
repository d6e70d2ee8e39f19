"""The command ``./dev``: its help names every verb, and its errors are clear."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = (ROOT / "dev").read_text()


def dev(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "dev", *arguments],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_verb() -> None:
    listed = set(re.findall(r"^  ([a-z]+) ", dev("help").stdout, re.M))
    defined = set(re.findall(r"^verb_([a-z]+)\(\)", SCRIPT, re.M))
    assert listed == defined | {"setup", "help"}


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_needs_nothing(arguments: tuple[str, ...]) -> None:
    ran = dev(*arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("usage: ./dev VERB")


def test_an_unknown_verb_is_refused() -> None:
    ran = dev("nonsense")
    assert ran.returncode == 1
    assert ran.stderr.endswith("dev: there is no verb nonsense\n")


def test_run_runs_inside_the_environment() -> None:
    ran = dev("run", "python", "-c", "import sys; print(sys.prefix)")
    assert ran.stdout == f"{ROOT / '.venv'}\n", ran.stderr


def test_what_needs_root_says_so(tmp_path: Path) -> None:
    fake = tmp_path / "id"
    fake.write_text("#!/bin/sh\necho 1000\n")
    fake.chmod(0o755)
    ran = dev("test", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("dev: test needs root")


def test_missing_packages_without_apt_are_named(tmp_path: Path) -> None:
    """A machine that has the shell's own tools and nothing else."""
    for name in ("dirname", "id", "sh"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    script = SCRIPT.replace(":/usr/local/sbin:/usr/sbin:/sbin", "").replace(
        'root=$(CDPATH=\'\' cd -- "$(dirname -- "$0")" && pwd)', f"root={ROOT}"
    )
    ran = subprocess.run(
        ["/bin/sh", "-s", "lint"],
        input=script,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == (
        "dev: no apt-get here: install the equivalents of these Debian packages yourself: "
        "git shellcheck\n"
    )


def test_the_readme_names_only_verbs_that_exist() -> None:
    verbs = set(re.findall(r"^verb_([a-z]+)\(\)", SCRIPT, re.M)) | {"setup", "help"}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        used = set(re.findall(r"\./dev ([a-z]+)", page.read_text()))
        assert used <= verbs, f"{page.relative_to(ROOT)}: {used - verbs}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_development_container_has_every_package() -> None:
    pairs = re.findall(r"(?<=\s)[\w./-]+:([a-z][a-z0-9.-]+)(?=\s)", SCRIPT)
    assert len(pairs) > 10
    installed = set((ROOT / "Dockerfile.dev").read_text().split())
    assert set(pairs) - installed == set()


@pytest.mark.parametrize(
    ("known", "fetched", "packages", "status"),
    [
        ("libc6 criu", "", ["criu"], 0),
        ("libc6 criu", "", ["criu", "qemu-system-x86"], 1),
        ("", "libc6 criu", ["criu"], 0),  # no list was there
        ("", "", ["criu"], 1),
        ("", "", [], 0),
    ],
)
def test_what_apt_offers(
    tmp_path: Path, known: str, fetched: str, packages: list[str], status: int
) -> None:
    lists = tmp_path / "lists"
    lists.write_text(known)
    programs = {
        "apt-cache": f'for name in $(cat {lists}); do [ "$name" != "$2" ] || echo found; done',
        "apt-get": f"echo {fetched} >{lists}",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    function = re.search(r"^offered\(\) \{\n.*?^\}\n", SCRIPT, re.M | re.S)
    assert function is not None
    ran = subprocess.run(
        ["/bin/sh", "-euc", f'{function[0]}offered "$@"', "sh", *packages],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        timeout=60,
        check=False,
    )
    assert ran.returncode == status
