"""The example of a snapshotter in a package of its own: installed as a user would, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.ctr import Ctr
from tests.conformance.daemons import REPOSITORY, Supervisord, remove_cgroups
from tests.conformance.fixtures import IMAGE

EXAMPLE = REPOSITORY / "docs/examples/copies"
NAMESPACE = f"sdexample-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    source = tmp_path_factory.mktemp("source") / "copies"
    target = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    more = ["--no-build-isolation", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*command, *more, "--target", target, source], check=True, timeout=120)
    return target


@pytest.fixture
def environment(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """In which the package is found, for daemons and for commands."""
    monkeypatch.setenv("PYTHONPATH", f"{site}:{REPOSITORY}")
    yield dict(os.environ)


def test_a_daemon_uses_it(environment: dict[str, str], image_tar: Path) -> None:
    daemon = Supervisord()
    daemon.more = '[plugins."io.containerd.snapshotter.v1.copies"]\nreflink = "never"\n'
    ctr = Ctr(daemon.address, NAMESPACE)
    words = ["--snapshotter", "copies"]
    try:
        daemon.start()
        (row,) = [row for row in ctr("plugins", "ls").rows() if row[1] == "copies"]
        assert row[-1] == "ok"
        ctr("images", "import", *words, str(image_tar))
        done = ctr("run", "--rm", *words, IMAGE, "c", "sh", "-c", "echo x >/new && cat /new")
        assert done.out == "x\n"
        ctr("images", "rm", "--sync", IMAGE)
        assert ctr("snapshots", *words, "ls").rows() == []
    finally:
        daemon.close()
        remove_cgroups(f"/{NAMESPACE}")


def test_it_can_be_served(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "snapshotters.serve", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "copies: reflink ('auto')" in done.stdout, done.stderr


@pytest.mark.timeout(400)
def test_it_passes_the_suite(environment: dict[str, str], tmp_path: Path) -> None:
    """With nothing of this project but what is installed: no settings, no fixtures of its tests."""
    shutil.copy(EXAMPLE / "test_copies.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, f"--basetemp={tmp_path}/t", "test_copies.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
