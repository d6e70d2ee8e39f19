"""Plugins: everything the daemon is made of, each with a type, an id, requirements and config.

Importing registers nothing. Boot takes one tuple of built-in registrations plus the entry points
of the group ``supervisord.plugins`` (each an object of type Registration or a callable that
answers one), refuses duplicates and cycles, starts them in the order of their requirements, and
closes them in reverse. A plugin that raises ``SkipPlugin`` is reported as skipped with its
reason; one that raises anything else is reported as failed, and is fatal only when required.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from .typed import TypedValue


class SkipPlugin(Exception):
    """The plugin does not apply here; the text says why (``no btrfs on /var/lib/...``)."""


class PluginContext(Protocol):
    """What a plugin is started with: ``root`` and ``state`` are its own folders (named by its
    uri, not made before it makes them), ``config`` its table of the file over its defaults,
    ``address`` and ``ttrpc_address`` the daemon's sockets, ``plugins`` the graph itself."""

    root: str
    state: str
    address: str
    ttrpc_address: str
    config: Mapping[str, Any]
    plugins: PluginRegistry

    def get(self, type: str, id: str = "") -> Any:
        """The started instance of that type (and id; else the only one, or the first in order of
        registration). Raises NotFound."""
        ...

    def all(self, type: str) -> Mapping[str, Any]:
        """All started instances of that type by id."""
        ...

    def export(self, key: str, value: str) -> None:
        """Adds an export that Introspection shows (``root``)."""
        ...

    def capability(self, *names: str) -> None:
        """Adds capabilities that Introspection shows."""
        ...

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Pushes what must run when the daemon stops, in reverse order."""
        ...


@dataclass(frozen=True, slots=True)
class Registration:
    """One plugin: ``type`` and ``id`` as containerd names them (``io.containerd.snapshotter.v1``,
    ``overlayfs``), the types it needs started first (``"*"`` for all others), its config keys
    with their defaults, whether the daemon can run without it, and the platform that it is for,
    where that is not this machine's."""

    type: str
    id: str
    start: Callable[[PluginContext], Awaitable[Any]]
    requires: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    config_help: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    platform: str = ""

    @property
    def uri(self) -> str:
        """``TYPE.ID``, the name of its table in the config file."""
        return f"{self.type}.{self.id}"


class State(enum.Enum):
    """What became of a plugin."""

    OK = "ok"
    SKIPPED = "skip"
    FAILED = "error"


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One plugin as Introspection reports it; ``reason`` is why it was skipped or failed."""

    type: str
    id: str
    requires: Sequence[str]
    state: State
    reason: str = ""
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    platform: str = ""


class PluginRegistry(Protocol):
    """What the graph of plugins tells about itself while it runs."""

    def statuses(self) -> Sequence[PluginStatus]:
        """All plugins in the order in which they were started."""
        ...

    def instance(self, type: str, id: str) -> Any:
        """The started instance. Raises NotFound, FailedPrecondition if it did not start."""
        ...


class Informative(Protocol):
    """An instance that answers Introspection's PluginInfo (the runtime: its features)."""

    async def plugin_info(self, options: TypedValue) -> TypedValue: ...


@dataclass(frozen=True, slots=True)
class GrpcService:
    """What a plugin of type ``io.containerd.grpc.v1`` answers (or a sequence of them): a service
    of the wire and the object that serves it, a method per RPC in snake case; see
    ``supervisord.services.server``. ``name`` serves the descriptor under another full name."""

    descriptor: ServiceDescriptor
    implementation: object
    name: str = ""
