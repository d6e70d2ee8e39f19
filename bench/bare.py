"""The OCI runtime by itself: the least that a container's life can take.

``create``, ``start`` and ``delete`` of ``/bin/true`` as a shell script would call them, on a root
filesystem that is there already. What a daemon takes more than that is the daemon's.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import layers
from bench.client import oci_spec, unique

_PATIENCE = 30.0


class Bare:
    """A runtime with a root and a bundle to create containers from."""

    def __init__(self, binary: str, folder: Path, group: str) -> None:
        self._binary = binary
        self._group = group
        self._folder = folder
        with tarfile.open(fileobj=io.BytesIO(layers.busybox())) as tar:
            tar.extractall(folder / "rootfs", filter="tar")

    def life(self) -> float:
        """Milliseconds of the three commands of one container. Raises RuntimeError."""
        id = unique("bare-")
        spec = oci_spec(id, ["/bin/true"], self._group)
        (self._folder / "config.json").write_text(json.dumps(spec))
        began = time.perf_counter()
        self._run("create", "--bundle", str(self._folder), id)
        self._run("start", id)
        started = time.perf_counter()
        self._await_end(id)
        ended = time.perf_counter()
        self._run("delete", id)
        return (time.perf_counter() - ended + started - began) * 1e3

    def _run(self, *arguments: str) -> str:
        command = [self._binary, "--root", str(self._folder / "state"), *arguments]
        # The container keeps what it was given, so its output must not be a pipe of ours.
        with tempfile.TemporaryFile("w+") as out:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False
            )
            out.seek(0)
            text = out.read()
        if ended.returncode:
            raise RuntimeError(f"{self._binary} {arguments[0]}: {text.strip()}")
        return text

    def _await_end(self, id: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while json.loads(self._run("state", id))["status"] != "stopped":
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._binary}: {id} does not end")


@contextmanager
def bare(binary: str, group: str) -> Iterator[Bare]:
    """A runtime on a temporary folder, whose containers are in a control group."""
    with tempfile.TemporaryDirectory(prefix="sv-bare-") as folder:
        yield Bare(binary, Path(folder), group)
