"""Images to and from a registry, by the command line of each: ``ctr`` there, ``sctl`` here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import figures, registry
from bench.figures import Figure

_NAMESPACE = "bench-images"
_SECONDS = 600


def transfers(address: str) -> Iterator[tuple[Figure, float]]:
    """Pulls, a push and an import, each into an empty namespace."""
    run = Runner(address)
    near = registry.address()
    for figure, name in ((figures.PULL_ONE, "one"), (figures.PULL_TWELVE, "twelve")):
        yield figure, run.pulled(f"{near}/{name}:1")
    with registry.slow_line(near) as far:
        yield figures.PULL_FAR, run.pulled(f"{far}/twelve:1")
    with tempfile.TemporaryDirectory(prefix="sv-bench-archive-") as folder:
        archive = registry.one_layer().archive(Path(folder) / "image.tar", "example.org/one:1")
        yield figures.IMPORT, run.timed("images", "import", str(archive))
        # What was imported came from no registry: no blob can be mounted from another place.
        yield figures.PUSH, run.pushed("example.org/one:1", f"{near}/copy-{time.time_ns()}:1")
        run.remove("example.org/one:1")


class Runner:
    """Runs one of the two commands on a socket."""

    def __init__(self, address: str) -> None:
        ours = Path(address).parent.name == "supervisord"
        self._ours = ours
        self.quiet = ["-q"] if ours else []
        where = ["--address", address, "--namespace", _NAMESPACE]
        program = [str(Path(sys.executable).with_name("sctl"))] if ours else ["ctr"]
        self._command = [*program, *where]

    def timed(self, *words: str) -> float:
        """Seconds that it takes. Raises RuntimeError with its words when it fails."""
        began = time.perf_counter()
        done = subprocess.run(
            [*self._command, *words],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[:2])}: {done.stderr.strip()[-300:]}")
        return time.perf_counter() - began

    def pulled(self, reference: str) -> float:
        took = self.timed("images", "pull", "--plain-http", *self.quiet, reference)
        self.remove(reference)
        return took

    def pushed(self, source: str, target: str) -> float:
        words = [source, target] if self._ours else [target, source]
        return self.timed("images", "push", "--plain-http", *words)

    def remove(self, name: str) -> None:
        """And all that it held."""
        self.timed("images", "rm", "--sync", name)
