"""containerd.services.introspection.v1: what the daemon is made of, and who it is."""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path

from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from protos.containerd.services.introspection.v1 import introspection_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.errors import FailedPrecondition, NotFound, Unimplemented
from supervisord.contracts.filters import Adaptor, lookup, parse
from supervisord.contracts.plugins import PluginRegistry, PluginStatus, State
from supervisord.contracts.typed import from_any

from .call import Call
from .wire import to_any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_PLATFORM_TYPES = ("io.containerd.snapshotter.", "io.containerd.differ.", "io.containerd.runtime.")
_SYSTEMS = ("linux", "windows", "darwin", "freebsd")
_CODES = {State.SKIPPED: 12, State.FAILED: 2}


def _platform(given: str) -> types_pb2.Platform:
    """``OS/ARCHITECTURE/VARIANT``, of which the first two may stand alone; "" for this machine."""
    machine = platform.machine()
    here = types_pb2.Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))
    first, *rest = given.split("/")
    if not rest and first not in _SYSTEMS:
        return types_pb2.Platform(os=here.os, architecture=first or here.architecture)
    architecture, variant = (*rest, "", "")[:2]
    return types_pb2.Platform(
        os=first, architecture=architecture or here.architecture, variant=variant
    )


def _to_wire(status: PluginStatus) -> pb.Plugin:
    """A skipped plugin has a status that ends in "skip plugin", by which clients tell it apart."""
    plugin = pb.Plugin(
        type=status.type,
        id=status.id,
        requires=status.requires,
        exports=status.exports,
        capabilities=status.capabilities,
    )
    if status.type.startswith(_PLATFORM_TYPES):
        plugin.platforms.append(_platform(status.platform))
    if status.state is not State.OK:
        reason = status.reason
        if status.state is State.SKIPPED:
            reason = f"{reason}: skip plugin"
        plugin.init_err.CopyFrom(Status(code=_CODES[status.state], message=reason))
    return plugin


class IntrospectionService:
    """``root`` is the folder that keeps the daemon's UUID. Needs no namespace."""

    def __init__(self, registry: PluginRegistry, root: str) -> None:
        self._registry = registry
        self._uuid = _kept_uuid(Path(root) / "uuid")

    async def plugins(self, call: Call, request: pb.PluginsRequest) -> pb.PluginsResponse:
        wanted = parse(request.filters)
        return pb.PluginsResponse(
            plugins=[
                _to_wire(status)
                for status in self._registry.statuses()
                if wanted.match(_adaptor(status))
            ]
        )

    async def server(self, call: Call, request: object) -> pb.ServerResponse:
        pid = os.getpid()
        return pb.ServerResponse(
            uuid=self._uuid, pid=pid, pidns=Path(f"/proc/{pid}/ns/pid").stat().st_ino
        )

    async def plugin_info(self, call: Call, request: pb.PluginInfoRequest) -> pb.PluginInfoResponse:
        uri = f"{request.type}.{request.id}"
        for status in self._registry.statuses():
            if (status.type, status.id) == (request.type, request.id):
                break
        else:
            raise NotFound(f"plugin {uri} not found: not found")
        response = pb.PluginInfoResponse(plugin=_to_wire(status))
        if request.HasField("options"):
            if status.state is not State.OK:
                raise FailedPrecondition(f"plugin {uri} did not start: {status.reason}")
            instance = self._registry.instance(status.type, status.id)
            tell = getattr(instance, "plugin_info", None)
            if tell is None:
                raise Unimplemented(f"plugin {uri} offers no further information")
            extra = to_any(await tell(from_any(request.options)))
            if extra is not None:
                response.extra.CopyFrom(extra)
        return response


def _adaptor(status: PluginStatus) -> Adaptor:
    return lambda path: lookup(path, {"type": status.type, "id": status.id})


def _kept_uuid(path: Path) -> str:
    """The UUID in the file; a new one where there is none, or where it is damaged."""
    try:
        return str(uuid.UUID(path.read_text().strip()))
    except (FileNotFoundError, ValueError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = str(uuid.uuid4())
        new = path.with_suffix(".new")
        new.write_text(made)
        new.replace(path)
        return made
