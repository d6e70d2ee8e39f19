"""Reports each test of the machine as one line of JSON, for the test outside to read."""

from __future__ import annotations

import json
import sys

import pytest

MARK = "@@"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        line = {
            "name": report.nodeid.rpartition("::")[2],
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "text": report.longreprtext[-6000:],
        }
        print(f"\n{MARK}{json.dumps(line)}", file=sys.__stdout__, flush=True)
