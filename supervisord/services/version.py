"""containerd.services.version.v1: the version of the daemon."""

from __future__ import annotations

from protos.containerd.services.version.v1 import version_pb2

from .call import Call


class VersionService:
    """Answers one fixed reply. Needs no namespace."""

    def __init__(self, version: str, revision: str) -> None:
        reply = version_pb2.VersionResponse(version=version, revision=revision)
        self._reply = reply.SerializeToString()

    async def version(self, call: Call, request: object) -> bytes:
        return self._reply
