"""What a foreign shim reads and prints when it is started: containerd's bootstrap protocols.

Its standard input is the runtime's options as an ``Any``, or, for shims made for containerd 2.3 and
later, BootstrapParams; each kind refuses the other's. It prints a BootstrapResult, JSON, or a bare
address, which means version 2 of the task service. ``foreign`` runs the programs.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from supervisord import __version__
from supervisord.contracts.errors import Error, Unimplemented, Unknown
from supervisord.contracts.typed import TypedValue

from .bundle import Bundle
from .launch import Settings

log = logging.getLogger(__name__)

NEWEST = 3
_REFUSALS = ("deprecated api", "bootstrap")
_LEVELS = {"trace": -8, "debug": -4, "info": 0, "warn": 4, "error": 8, "fatal": 10, "panic": 12}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a started shim listens, and the version of its task service."""

    address: str
    version: int


def options(value: TypedValue) -> bytes:
    """The input of older shims; nothing where there are no options."""
    return Any(type_url=value.type_url, value=value.value).SerializeToString()


def params(settings: Settings, bundle: Bundle, value: TypedValue, publisher: str) -> bytes:
    """The input of newer shims; ``publisher`` is the program that publishes for them."""
    message = bootstrap_pb2.BootstrapParams(
        instance_id=bundle.id,
        namespace=bundle.namespace,
        log_level=_LEVELS.get(settings.log_level, 0),  # type: ignore[arg-type]
        containerd_version=__version__,
        containerd_ttrpc_address=settings.ttrpc_address,
        containerd_grpc_address=settings.address,
        containerd_binary=publisher,
        socket_dir=settings.sockets,
    )
    if value:
        extension = message.extensions.add().value
        extension.type_url, extension.value = value.type_url, value.value
    return message.SerializeToString()


def wants_params(words: str) -> bool:
    """Whether a shim that got options means that it wants parameters, by its last words."""
    return any(sign in words.lower() for sign in _REFUSALS)


def parse(output: bytes) -> Endpoint:
    """What a shim printed. Raises Unimplemented for a protocol or version that we do not speak,
    Unknown for no address."""
    version, address, protocol = _fields(output)
    if version > NEWEST:
        raise Unimplemented(f"unsupported shim version ({version})")
    if protocol.lower() != "ttrpc":
        raise Unimplemented(f"shim protocol {protocol!r} is not supported")
    if not address:
        raise Unknown("the shim printed no address")
    scheme, found, path = address.partition("://")
    if not found:
        # Old shims listen on abstract sockets, whose names may look like paths.
        return Endpoint(address if os.path.exists(address) else f"@{address}", version)  # noqa: PTH110
    if scheme != "unix":
        raise Unimplemented(f"shim address {address!r}: only unix sockets are supported")
    return Endpoint(path, version)


def left_address(folder: str) -> str:
    """Where a shim listens whose start nobody has recorded: shims leave that in their bundle, in
    the file ``address``. "" where this one has not."""
    try:
        with open(f"{folder}/address", "rb") as file:
            return parse(file.read()).address
    except (OSError, Error) as error:
        log.debug("no address", extra={"bundle": folder, "reason": error})
        return ""


def _fields(output: bytes) -> tuple[int, str, str]:
    try:
        message = bootstrap_pb2.BootstrapResult.FromString(output)
        if message.address and message.version:
            return message.version, message.address, message.protocol or "ttrpc"
    except DecodeError:
        pass  # it is of the other two kinds
    text = output.decode(errors="replace").strip()
    try:
        values = json.loads(text)
        if int(values["version"]) >= 2:
            return (
                int(values["version"]),
                str(values.get("address", "")),
                str(values.get("protocol") or "ttrpc"),
            )
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    return 2, text, "ttrpc"
