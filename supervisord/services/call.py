"""One gRPC call as a service sees it: who asks, in which namespace, under which lease.

Made by ``services.server`` for every call; services read it and hand the scope on. A service that
needs no namespace never touches ``scope``, so it is neither required nor checked there, as with
containerd.
"""

from __future__ import annotations

from typing import Any

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.scope import Scope

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"


class Call:
    """The request's context. Lives as long as its RPC."""

    __slots__ = ("_context", "_scope", "sent")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._scope: Scope | None = None
        self.sent = 0

    @property
    def scope(self) -> Scope:
        """The namespace and lease in the request's metadata.

        Raises FailedPrecondition without a namespace, InvalidArgument for a malformed one."""
        if self._scope is None:
            self._scope = self._read_scope()
        return self._scope

    @property
    def namespace(self) -> str:
        """The namespace alone; raises as ``scope`` does."""
        return self.scope.namespace

    async def begin(self) -> None:
        """Sends the response's headers now: tells a streaming client that it is being served,
        before there is a first message."""
        await self._context.send_initial_metadata(())

    async def send(self, message: bytes) -> None:
        """Sends a serialized message of a streaming answer before its last one; returns when it is
        on its way, so that no more than one waits for a client that does not read."""
        await self._context.write(message)
        self.sent += 1

    def _read_scope(self) -> Scope:
        namespace = lease = ""
        for key, value in self._context.invocation_metadata() or ():
            if key == NAMESPACE_HEADER:
                namespace = namespace or value
            elif key == LEASE_HEADER:
                lease = lease or value
        if not namespace:
            raise FailedPrecondition("namespace is required: failed precondition")
        check_identifier(namespace, "namespace")
        if len(lease) > 4096:
            raise InvalidArgument(f"{LEASE_HEADER}: longer than 4096 characters")
        return Scope(namespace, lease)
