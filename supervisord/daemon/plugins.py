"""The graph of plugins: orders them, starts them, tells what became of each, and closes them.

Used by ``daemon.boot`` alone. Registrations come in the order of the built-in tuple, then of the
entry points; requirements (types, or ``*`` for all that do not themselves require all) come
first. A plugin that fails takes nobody with it but those that then miss it, unless it is
required.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisord.contracts.errors import Error, FailedPrecondition, NotFound
from supervisord.contracts.plugins import (
    PluginRegistry,
    PluginStatus,
    Registration,
    SkipPlugin,
    State,
)

log = logging.getLogger(__name__)

ENTRY_POINTS = "supervisord.plugins"
_DESCRIPTIONS = (".dist-info", ".egg-info", "EGG-INFO")


class GraphError(Exception):
    """The registrations cannot be started as they are: a duplicate, a cycle, a missing one."""


@dataclass(slots=True)
class _Plugin:
    registration: Registration
    state: State = State.OK
    reason: str = ""
    instance: Any = None
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)

    def status(self) -> PluginStatus:
        return PluginStatus(
            type=self.registration.type,
            id=self.registration.id,
            requires=tuple(self.registration.requires),
            state=self.state,
            reason=self.reason,
            exports=self.exports,
            capabilities=tuple(self.capabilities),
            platform=self.registration.platform,
        )


def discovered() -> tuple[list[Registration], dict[str, Exception]]:
    """The registrations that other packages offer as entry points, and what went wrong with the
    others by name: a broken package must not stop the daemon."""
    if not any(_offers(Path(folder or ".")) for folder in sys.path):
        return [], {}  # a look is cheaper by far than what reads packages
    import importlib.metadata

    found: list[Registration] = []
    broken: dict[str, Exception] = {}
    for entry in sorted(
        importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name
    ):
        try:
            loaded = entry.load()
            offered = loaded if isinstance(loaded, Registration) else loaded()
            if not isinstance(offered, Registration):
                raise TypeError(f"{entry.value} is no Registration")
            found.append(offered)
        except Exception as error:
            broken[entry.name] = error
    return found, broken


def _offers(place: Path) -> bool:
    """Whether some package there may offer plugins; yes for an archive."""
    try:
        packages = [each for each in place.iterdir() if each.name.endswith(_DESCRIPTIONS)]
    except NotADirectoryError:
        return True
    except OSError:
        return False
    return any(_mentions(package / "entry_points.txt") for package in packages)


def _mentions(path: Path) -> bool:
    try:
        return ENTRY_POINTS.encode() in path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # whoever reads it for good will tell what is wrong


def ordered(
    registrations: Sequence[Registration], disabled: Sequence[str] = ()
) -> list[Registration]:
    """The registrations that are not disabled (by uri or by type), each after what it requires.

    Raises GraphError for a duplicate or a cycle, naming its members."""
    kept = [r for r in registrations if r.uri not in disabled and r.type not in disabled]
    seen: set[str] = set()
    for registration in kept:
        if registration.uri in seen:
            raise GraphError(f"plugin {registration.uri} is registered twice")
        seen.add(registration.uri)
    done: dict[str, Registration] = {}
    path: list[str] = []

    def visit(registration: Registration) -> None:
        if registration.uri in done:
            return
        if registration.uri in path:
            circle = [*path[path.index(registration.uri) :], registration.uri]
            raise GraphError("plugins require each other: " + " -> ".join(circle))
        path.append(registration.uri)
        for other in _required_by(registration, kept):
            visit(other)
        path.pop()
        done[registration.uri] = registration

    for registration in kept:
        visit(registration)
    return list(done.values())


def _required_by(one: Registration, all: Sequence[Registration]) -> list[Registration]:
    if "*" in one.requires:
        return [other for other in all if "*" not in other.requires]
    return [other for type in one.requires for other in all if other.type == type]


class Graph:
    """The plugins of a running daemon (``contracts.plugins.PluginRegistry``)."""

    def __init__(
        self,
        registrations: Sequence[Registration],
        *,
        root: str,
        state: str,
        address: str,
        ttrpc_address: str,
        config: Mapping[str, Mapping[str, Any]],
        required: Sequence[str] = (),
        disabled: Sequence[str] = (),
    ) -> None:
        """``config`` has a table per uri; ``required`` and ``disabled`` are uris (the latter also
        types). Raises GraphError."""
        self._order = ordered(registrations, disabled)
        missing = set(required) - {r.uri for r in self._order}
        if missing:
            raise GraphError(f"required plugin {min(missing)} is not there")
        self._root, self._state = Path(root), Path(state)
        self._address, self._ttrpc_address = address, ttrpc_address
        self._config = config
        self._required = set(required)
        self._plugins: dict[str, _Plugin] = {}
        self._closers = AsyncExitStack()

    async def start(self) -> None:
        """Starts all in order. Raises GraphError when a required one did not start; the caller
        then closes."""
        for registration in self._order:
            await self._start(registration)

    async def close(self) -> None:
        """Closes in reverse what was started; one failing close is logged and skips no other."""
        await self._closers.aclose()

    def statuses(self) -> Sequence[PluginStatus]:
        return [plugin.status() for plugin in self._plugins.values()]

    def instance(self, type: str, id: str) -> Any:
        plugin = self._plugins.get(f"{type}.{id}")
        if plugin is None:
            raise NotFound(f"plugin {type}.{id}: not found")
        if plugin.state is not State.OK:
            raise FailedPrecondition(f"plugin {type}.{id} did not start: {plugin.reason}")
        return plugin.instance

    def instances(self, type: str) -> dict[str, Any]:
        """The started instances of one type by id."""
        return {
            plugin.registration.id: plugin.instance
            for plugin in self._plugins.values()
            if plugin.registration.type == type and plugin.state is State.OK
        }

    def reasons(self, type: str) -> list[str]:
        """Why plugins of one type did not start."""
        return [
            f"{plugin.registration.uri}: {plugin.reason}"
            for plugin in self._plugins.values()
            if plugin.registration.type == type and plugin.state is not State.OK
        ]

    def push_close(self, uri: str, close: Callable[[], Awaitable[None]]) -> None:
        """Has ``close`` run before everything that was pushed earlier."""

        async def guarded() -> None:
            try:
                await close()
            except Exception as error:
                log.error("plugin did not close cleanly", exc_info=error, extra={"plugin": uri})

        self._closers.push_async_callback(guarded)

    async def _start(self, registration: Registration) -> None:
        uri = registration.uri
        plugin = _Plugin(registration)
        self._plugins[uri] = plugin
        context = Context(
            self,
            plugin,
            root=str(self._root / uri),
            state=str(self._state / uri),
            address=self._address,
            ttrpc_address=self._ttrpc_address,
            config={**registration.config, **self._config.get(uri, {})},
        )
        try:
            plugin.instance = await registration.start(context)
        except SkipPlugin as error:
            plugin.state, plugin.reason = State.SKIPPED, str(error)
            log.info("plugin skipped", extra={"plugin": uri, "reason": error})
        except Exception as error:
            plugin.state, plugin.reason = State.FAILED, str(error) or type(error).__name__
            defect = None if isinstance(error, Error) else error
            if defect or not (registration.required or uri in self._required):  # else told below
                fields = {"plugin": uri, "error": error}
                log.warning("plugin failed", exc_info=defect, extra=fields)
        else:
            log.debug("plugin started", extra={"plugin": uri})
        if plugin.state is not State.OK and (registration.required or uri in self._required):
            raise GraphError(f"required plugin {uri} did not start: {plugin.reason}")


class Context:
    """What one plugin is started with (``contracts.plugins.PluginContext``)."""

    def __init__(
        self,
        graph: Graph,
        plugin: _Plugin,
        *,
        root: str,
        state: str,
        address: str,
        ttrpc_address: str,
        config: Mapping[str, Any],
    ) -> None:
        self._graph = graph
        self.plugins: PluginRegistry = graph
        self._plugin = plugin
        self.root = root
        self.state = state
        self.address = address
        self.ttrpc_address = ttrpc_address
        self.config = config

    def get(self, type: str, id: str = "") -> Any:
        if id:
            return self._graph.instance(type, id)
        for instance in self._graph.instances(type).values():
            return instance
        reasons = "; ".join(self._graph.reasons(type)) or "none is registered"
        raise NotFound(f"no plugin of type {type}: {reasons}")

    def all(self, type: str) -> Mapping[str, Any]:
        return self._graph.instances(type)

    def export(self, key: str, value: str) -> None:
        self._plugin.exports[key] = value

    def capability(self, *names: str) -> None:
        self._plugin.capabilities.extend(names)

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        self._graph.push_close(self._plugin.registration.uri, close)
