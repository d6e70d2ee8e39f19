"""Control groups of version 2 alone, checkpoints, and an older kernel's mounts: in a machine.

The tests themselves are in ``inside``; they run once, in a machine that is made of this one, and
each is reported here under its own name.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from . import image, machine
from .inside.conftest import MARK

INSIDE = ("tests/e2e/vm/inside/test_unified.py", "tests/e2e/vm/inside/test_storage.py")
SECONDS = 1200.0
_OPTIONS = (
    "-q --tb=short -p no:cacheprovider -c /dev/null --rootdir . --confcutdir tests/e2e/vm/inside"
)


@dataclass(frozen=True)
class Run:
    """What the machine had to say: the reports of each test inside, and the rest of it."""

    reports: Mapping[str, list[dict[str, Any]]]
    output: str


def names() -> list[str]:
    """The tests inside; one that has parameters is reported as a whole."""
    texts = [(image.REPOSITORY / path).read_text() for path in INSIDE]
    return re.findall(r"^def (test_\w+)", "\n".join(texts), re.MULTILINE)


@pytest.fixture(scope="module")
def run() -> Run:
    """One run of all tests inside."""
    if platform.machine() != "x86_64":
        pytest.skip("the machine is an x86_64")
    script = (
        f"cd {image.REPOSITORY}\n"
        "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1\n"
        f"{sys.executable} -m pytest {_OPTIONS} {' '.join(INSIDE)}\n"
    )
    reports: dict[str, list[dict[str, Any]]] = {}
    output: list[str] = []
    try:
        for line in machine.lines(script, SECONDS):
            if line.startswith(MARK):
                report = json.loads(line.removeprefix(MARK))
                reports.setdefault(report["name"].partition("[")[0], []).append(report)
            else:
                output.append(line)
    except image.Missing as missing:
        if os.environ.get("SUPERVISORD_TEST_VM") == "required":  # ./dev has installed it all
            raise
        pytest.skip(f"the machine is not to be had: {missing}")
    return Run(reports, "\n".join(output)[-5000:])


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", names())
def test_inside(run: Run, name: str) -> None:
    assert name in run.reports, f"it did not run:\n{run.output}"
    for report in run.reports[name]:
        assert report["outcome"] == "passed", f"{report['name']}:\n{report['text']}"
