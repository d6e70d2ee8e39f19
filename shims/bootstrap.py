"""What the classic start of a shim reads from its caller: flags, environment and standard input.

containerd 2.3 and later write BootstrapParams; before, it was the runtime's options, if anything,
which look like such parameters to protobuf: so these count only if they name the same container as
the flags. The answer is of the kind that the caller knows: a BootstrapResult, JSON, or the address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2

SOCKETS = "/run/containerd/s"
_DEBUG = -4
_VERSION = 3


@dataclass(frozen=True, slots=True)
class Order:
    """A shim to start: whose, the daemon's two sockets, and where its own goes. ``newest`` is the
    version of the task service up to which the caller goes."""

    namespace: str
    id: str
    address: str
    ttrpc_address: str
    debug: bool
    sockets: str
    newest: int
    is_bootstrap: bool = False

    def answer(self, address: str) -> bytes:
        """What is printed for a shim at this address."""
        if self.is_bootstrap:
            return bootstrap_pb2.BootstrapResult(
                version=_VERSION, address=address, protocol="ttrpc"
            ).SerializeToString()
        if self.newest >= _VERSION:
            values = {"version": _VERSION, "address": address, "protocol": "ttrpc"}
            return json.dumps(values).encode()
        return address.encode()


def order(flags: Mapping[str, str], environment: Mapping[str, str], stdin: bytes) -> Order:
    """Flags as ``main.parse`` gives them; ``namespace`` and ``id`` are there."""
    newest = environment.get("MAX_SHIM_VERSION", "")
    found = Order(
        namespace=flags["namespace"],
        id=flags["id"],
        address=flags.get("address", ""),
        ttrpc_address=environment.get("TTRPC_ADDRESS", ""),
        debug=flags.get("debug") == "true",
        sockets=SOCKETS,
        newest=int(newest) if newest.isdecimal() else 2,
    )
    try:
        params = bootstrap_pb2.BootstrapParams.FromString(stdin)
    except DecodeError:
        return found
    if (params.instance_id, params.namespace) != (found.id, found.namespace):
        return found
    return Order(
        namespace=found.namespace,
        id=found.id,
        address=params.containerd_grpc_address or found.address,
        ttrpc_address=params.containerd_ttrpc_address or found.ttrpc_address,
        debug=params.log_level <= _DEBUG,
        sockets=params.socket_dir or found.sockets,
        newest=_VERSION,
        is_bootstrap=True,
    )
