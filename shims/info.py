"""``containerd-shim-supervisord-v2 -info``: what this shim and its OCI runtime can do.

The runtime's options, an ``Any``, come on the standard input; a RuntimeInfo is the answer.
"""

from __future__ import annotations

import json
import shutil
import subprocess

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.types import types_pb2
from supervisord import __version__
from supervisord.contracts.errors import InvalidArgument, NotFound

_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_SECONDS = 10.0


def info(name: str, runtime: str, stdin: bytes) -> types_pb2.RuntimeInfo:
    """``runtime`` is the OCI runtime where the options name none.

    Raises InvalidArgument (options), NotFound (the runtime)."""
    found = types_pb2.RuntimeInfo(
        name=name, version=types_pb2.RuntimeVersion(version=f"v{__version__}")
    )
    try:
        wanted = Any.FromString(stdin)
        if wanted.type_url:
            found.options.CopyFrom(wanted)
        if wanted.type_url.rpartition("/")[2] == options_pb2.Options.DESCRIPTOR.full_name:
            runtime = options_pb2.Options.FromString(wanted.value).binary_name or runtime
    except DecodeError as error:
        raise InvalidArgument(f"options: {error}") from error
    binary = shutil.which(runtime)
    if binary is None:
        raise NotFound(f"failed to look up the path of {runtime!r}")
    features = _features(binary)
    if features:
        found.features.type_url, found.features.value = _FEATURES, features
    return found


def _features(binary: str) -> bytes:
    """What ``BINARY features`` prints; nothing where it does not know the command."""
    try:
        done = subprocess.run(
            [binary, "features"], capture_output=True, timeout=_SECONDS, check=True
        )
        json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return b""
    return done.stdout
