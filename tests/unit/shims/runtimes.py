"""OCI runtimes by real names and others, which note how they are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from supervisord.linux import cgroups

_CALL = """
echo "$*" >> {calls}
exec {runtime} "$@"
"""
_CALL_WITHOUT_GROUPS = """
echo "$*" >> {calls}
exec unshare -m --propagation private sh -ec '
    mount -t tmpfs own /sys/fs/cgroup
    exec {runtime} --cgroup-manager=disabled "$@"
' sh "$@"
"""
"""crun refuses to look at hybrid control groups."""

needs_crun = pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun")
both = pytest.mark.parametrize("runtime", ["runc", pytest.param("crun", marks=needs_crun)])


def has_groups(runtime: str) -> bool:
    """Whether its containers have control groups on this machine."""
    return runtime != "crun" or cgroups.is_unified()


class Spy:
    """A runtime called ``name`` (its own by default)."""

    def __init__(self, base: Path, runtime: str = "runc", name: str = "") -> None:
        self.runtime = runtime
        self.name = name or runtime
        folder = base / f"bin-{self.name}"
        folder.mkdir()
        self._calls = folder / "calls"
        self._calls.touch()
        self.path = folder / self.name
        call = _CALL if has_groups(runtime) else _CALL_WITHOUT_GROUPS
        self.path.write_text("#!/bin/sh" + call.format(calls=self._calls, runtime=runtime))
        self.path.chmod(0o755)

    def count(self, verb: str) -> int:
        """How often it was called so."""
        return self._calls.read_text().count(f" {verb} ")
