"""Modules that wait until they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def _ran(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_loads_nothing_that_only_libraries_name(tmp_path: Path) -> None:
    """asyncio's events are imported where asyncio was used."""
    script = (
        "import sys\nfrom supervisord.cli.main import main\nassert main() == 1\n"
        "print({'grpc', 'asyncio.events', 'ssl', '_hashlib'} & set(sys.modules))"
    )
    words = ("--address", str(tmp_path / "nobody"), "images", "pull", "a")
    assert _ran(script, *words) == "{'grpc'}\n"


def test_what_waits_is_whole_once_it_is_used() -> None:
    script = (
        "from supervisord.cli import lazily\nlazily.begin()\n"
        "import asyncio, hashlib, sys\nimport asyncio\n"
        "assert 'asyncio.events' not in sys.modules\n"
        "async def five(): return 5\n"
        "print(asyncio.run(five()), hashlib.sha256(b'').hexdigest()[:4], asyncio.__name__)"
    )
    assert _ran(script) == "5 e3b0 asyncio\n"


def test_a_part_of_what_waits_is_a_use() -> None:
    script = (
        "from supervisord.cli import lazily\nlazily.begin()\n"
        "import asyncio.events, grpc.aio\n"
        "print(asyncio.events.AbstractEventLoop.__name__, grpc.aio.insecure_channel.__name__)"
    )
    assert _ran(script) == "AbstractEventLoop insecure_channel\n"
