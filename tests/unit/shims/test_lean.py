"""The stand-ins that keep a zygote small: what they keep out, and that they leave no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import shims

ROOT = Path(shims.__file__).parents[1]


def in_zygote(code: str) -> Any:
    """What a fresh interpreter prints as JSON, loaded as a zygote of shims is."""
    program = f"import sys; import shims.zygote as zygote; zygote.load('shim')\n{code}"
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_what_no_shim_uses_is_not_there() -> None:
    loaded = in_zygote("import json; print(json.dumps(sorted(sys.modules)))")
    unwanted = {
        "dataclasses",
        "datetime",
        "google.protobuf.internal.python_message",
        "google.protobuf.text_format",
        "inspect",
        "pathlib",
        "shutil",
        "tempfile",
        "typing",
        "urllib.parse",
    }
    assert "shims.service" in loaded
    assert not unwanted & set(loaded)


def test_late_imports_are_the_real_thing() -> None:
    code = """
import json, pathlib, socket, typing, dataclasses
from supervisord.linux import cgroups, process
from google.protobuf import text_format
print(json.dumps([
    pathlib.Path("/a/b").name,
    socket.socket.__module__,
    typing.NamedTuple.__module__,
    dataclasses.dataclass.__module__,
    text_format.MessageToString.__module__,
    cgroups.Path("/a/b").name,
    process.socket.SOCK_DGRAM == socket.SOCK_DGRAM,
]))
"""
    assert in_zygote(code) == [
        "b",
        "socket",
        "typing",
        "dataclasses",
        "google.protobuf.text_format",
        "b",
        True,
    ]


def test_classes_work_as_with_the_real_decorators() -> None:
    code = """
import json
from shims.command import Streams
from shims.reaper import Exit
from supervisord.ttrpc.frames import Frame
print(json.dumps([
    vars(Streams(1, stderr=2)), Exit(1, 2, 3)._asdict(), list(Frame(1, 2, 3, "data")),
    isinstance(Frame(1, 2, 3, b""), tuple),
]))
"""
    assert in_zygote(code) == [
        {"stdin": 1, "stdout": -1, "stderr": 2},
        {"pid": 1, "status": 2, "at": 3},
        [1, 2, 3, "data", 0],
        True,
    ]
