"""What the flags of ``tasks update`` make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisord.cli import updating
from supervisord.cli.arguments import Parser
from supervisord.cli.errors import CliError


def made(*words: str) -> dict[str, Any]:
    parser = Parser(prog="sctl tasks update")
    updating.add_flags(parser)
    return updating.resources_of(parser.parse_args(words))


def test_each_flag_goes_where_it_belongs() -> None:
    words = "-m 1G --memory-swap -1 --memory-reservation 512M -c 512 --cpuset-cpus 0-1"
    assert made(*words.split(), "--cpuset-mems", "0", "--pids-limit", "0") == {
        "memory": {"limit": 1 << 30, "swap": -1, "reservation": 512 << 20},
        "cpu": {"shares": 512, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 0},
    }
    assert made("--cpus", "1.5") == {"cpu": {"quota": 150_000, "period": 100_000}}
    assert made("--cpu-quota", "-1", "--cpu-period", "5000") == {
        "cpu": {"quota": -1, "period": 5000}
    }


def test_flags_count_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"memory": {"limit": 5, "swap": 6}, "unified": {"memory.high": "7"}}')
    assert made("--resources", str(file), "--memory", "9") == {
        "memory": {"limit": 9, "swap": 6},
        "unified": {"memory.high": "7"},
    }


@pytest.mark.parametrize("text", ["[]", "{", "null", '{"memory": 5}', "\xff"])
def test_files_that_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(CliError, match="--resources"):
        made("--resources", str(file), "--memory", "9")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to change"),
        (["--cpus", "0"], "at least 0.01"),
        (["--cpus", "nan"], "at least 0.01"),
        (["--cpus", "1", "--cpu-period", "5000"], "exclude each other"),
        (["--memory", "-2"], "is not a size"),
    ],
)
def test_flags_that_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(CliError, match=says):
        made(*words)
