"""What a runtime can do, as Introspection's PluginInfo asks (``nerdctl info``, ``ctr plugins
inspect-runtime``): its name, version and options, and the features that its OCI runtime reports.

A foreign shim is asked itself (``BINARY -info``, the options on its standard input).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.types import types_pb2
from supervisord import __version__
from supervisord.aio import command
from supervisord.contracts.errors import Error, InvalidArgument, NotFound, Unimplemented, Unknown
from supervisord.contracts.typed import TypedValue, pack

from . import names
from .oci import OciRuntimes

log = logging.getLogger(__name__)

FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_REQUEST = "containerd.types.RuntimeRequest"
_OPTIONS = "containerd.runc.v1.Options"
_DEFAULT = "io.containerd.runc.v2"
_SECONDS = 10.0


async def runtime_info(
    options: TypedValue, runtimes: OciRuntimes, shims: Mapping[str, str] | None = None
) -> TypedValue:
    """A RuntimeInfo for a RuntimeRequest; ``shims`` has executables by runtime name.

    Raises Unimplemented (another type of request), InvalidArgument, NotFound, Unknown."""
    if options.type_url.rpartition("/")[2] != _REQUEST:
        raise Unimplemented(f"unknown request type {options.type_url!r}")
    try:
        request = types_pb2.RuntimeRequest.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"options: no {_REQUEST}: {error}") from error
    runtime = request.runtime_path or _DEFAULT
    binary = names.resolve(runtime, named=shims)
    if binary:
        return await _foreign(binary, request.options)
    info = types_pb2.RuntimeInfo(
        name=runtime, version=types_pb2.RuntimeVersion(version=f"v{__version__}")
    )
    if request.HasField("options"):
        info.options.CopyFrom(request.options)
    features = await _features(await _oci_binary(request.options, runtimes))
    if features:
        info.features.type_url, info.features.value = FEATURES_URL, features
    return pack(info)


async def _oci_binary(options: Any, runtimes: OciRuntimes) -> str:
    """The OCI runtime that the options name, else the default. Raises InvalidArgument."""
    if options.type_url.rpartition("/")[2] != _OPTIONS:
        return await runtimes.default()
    try:
        wanted = options_pb2.Options.FromString(options.value).binary_name
    except DecodeError as error:
        raise InvalidArgument(f"options: no {_OPTIONS}: {error}") from error
    if not wanted:
        return await runtimes.default()
    found = shutil.which(wanted)
    if found is None:
        raise NotFound(f"runtime binary {wanted!r}: not found in the search path")
    return found


async def _features(binary: str) -> bytes:
    """What ``BINARY features`` prints; nothing from one that does not know the command."""
    try:
        result = await command.run([binary, "features"], seconds=_SECONDS)
        if result.status == 0:
            json.loads(result.stdout)
            return result.stdout
        log.debug("no features", extra={"binary": binary, "reason": result.last_words})
    except (Error, ValueError) as error:
        log.debug("no features", extra={"binary": binary, "reason": error})
    return b""


async def _foreign(binary: str, options: Any) -> TypedValue:
    data = options.SerializeToString() if options.type_url else b""
    result = await command.run([binary, "-info"], seconds=_SECONDS, stdin=data)
    if result.status:
        raise Unknown(f"{binary} -info: {result.last_words}")
    try:
        return pack(types_pb2.RuntimeInfo.FromString(result.stdout))
    except DecodeError as error:
        raise Unknown(f"{binary} -info printed no RuntimeInfo: {error}") from error
