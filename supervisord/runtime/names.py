"""Runtime names: which shim a container's runtime stands for.

``io.containerd.runc.v2`` and its kin are our own shims; any other name of the form
``PREFIX.NAME.VERSION`` is the executable ``containerd-shim-NAME-VERSION`` in the search path or
beside the daemon's own, and an absolute path is that executable itself. These are containerd's
rules. Before all of them come the names that the configuration and plugins of type
``io.supervisord.shim.v1`` give an executable.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from supervisord.contracts.errors import InvalidArgument, NotFound

OURS = frozenset({"io.containerd.runc.v2", "io.containerd.runc.v1", "io.supervisord.runtime.v1"})
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """Where shims are looked for: the daemon's PATH, then the folders of the program that it was
    started as and of its interpreter."""
    beside = [str(Path(file).absolute().parent) for file in (sys.argv[0], sys.executable)]
    return os.pathsep.join([os.environ.get("PATH") or _PATH, *beside])


def shim_binary(runtime: str) -> str:
    """The name of the executable for a runtime name. Raises InvalidArgument."""
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or "/" in runtime or "\0" in runtime:
        raise InvalidArgument(
            f"runtime: invalid runtime name {runtime!r}, it must be either like "
            "io.containerd.runc.v2 or the full path of a shim"
        )
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def resolve(runtime: str, path: str = "", named: Mapping[str, str] | None = None) -> str:
    """The executable of a foreign shim, or "" for our own; ``path`` is where to look instead of
    the search path, ``named`` has executables by runtime name.

    Raises InvalidArgument (no name, malformed), NotFound (not installed)."""
    if not runtime:
        raise InvalidArgument("runtime: no runtime name")
    if named and runtime in named:
        return named[runtime]
    if runtime in OURS:
        return ""
    if runtime.startswith("/"):
        if not Path(runtime).is_file():
            raise NotFound(f"runtime {runtime!r}: invalid custom binary path: no such file")
        return runtime
    name = shim_binary(runtime)
    found = shutil.which(name, path=path or search_path())
    if found is None:
        raise NotFound(f"runtime {runtime!r} binary not installed {name!r}: file does not exist")
    return found
