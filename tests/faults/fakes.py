"""Makes the programs of ``tests/faults/programs`` executable, and writes their scripts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1 import options_pb2

PROGRAMS = Path(__file__).parent / "programs"

Step = dict[str, Any]


def fail(message: str, **more: Any) -> Step:
    """The command fails, as runc does: with a line in its log."""
    line = json.dumps({"level": "error", "msg": "MESSAGE", "time": "2020-01-01T00:00:00Z"}) + "\n"
    return {"end": "fail", "message": message, "log": line, **more}


HANG: Step = {"end": "hang"}


class Fake:
    """An executable of a name, in a folder; it is the real one where it has no script."""

    def __init__(self, folder: Path, name: str, program: str, real: str) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / name
        source = (PROGRAMS / program).read_text()
        self.path.write_text(f"#!{os.path.realpath(sys.executable)} -ISs\n{source}")
        self.path.chmod(0o755)
        self._script = Path(f"{self.path}.json")
        self._log = Path(f"{self.path}.log")
        found = shutil.which(real)
        assert found is not None, f"{real} is not installed"
        self._real = found
        self.tell({})

    def tell(self, script: dict[str, list[Step]]) -> None:
        """The script from now on."""
        with self._script.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            json.dump({"real": self._real, "script": script}, file)

    def calls(self, verb: str = "") -> list[str]:
        """The calls so far, as ``VERB WHAT``; of one verb, or of all."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        words = [line.split(" ") for line in lines]
        return [f"{v} {what}" for v, _, what in words if verb in ("", v)]

    def hanging(self) -> list[int]:
        """The pids of the calls that hang, or did."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [int(line.split(" ")[1]) for line in lines if line.endswith(" hang")]


class FakeRuntime(Fake):
    """An OCI runtime; runc behaves differently where it has that name."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name, "runtime.py", "runc")

    def options(self, **more: Any) -> AnyMessage:
        """The options of a create that ask for it."""
        options = options_pb2.Options(binary_name=str(self.path), **more)
        return AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())


class FakeShim(Fake):
    """A shim between the daemon and containerd's own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "containerd-shim-fake-v1", "shim.py", "containerd-shim-runc-v2")
