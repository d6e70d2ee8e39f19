"""Starts the plugin of a snapshotter outside the daemon: finds it, and gives it what it needs."""

from __future__ import annotations

import importlib.metadata
import logging
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from snapshotters.plugin import ROOT_PATH, SNAPSHOTTER
from snapshotters.registrations import SNAPSHOTTERS
from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.contracts.plugins import PluginRegistry, PluginStatus, Registration

log = logging.getLogger(__name__)

ENTRY_POINTS = "supervisord.plugins"


def available() -> dict[str, Registration]:
    """The snapshotters that come with the daemon, and those that other packages bring, by id."""
    found = {registration.id: registration for registration in SNAPSHOTTERS}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
            offered = loaded if isinstance(loaded, Registration) else loaded()
        except Exception as error:  # a broken package is no reason not to serve another one
            log.warning("%s: cannot be loaded: %s", entry.value, error)
            continue
        if isinstance(offered, Registration) and offered.type == SNAPSHOTTER:
            found.setdefault(offered.id, offered)
    return found


def configured(registration: Registration, options: Sequence[str]) -> dict[str, Any]:
    """The plugin's configuration, with options ``KEY=VALUE`` over the defaults. A value is TOML,
    as in the daemon's file; where a string is wanted, quotes may be left out.

    Raises InvalidArgument that names the key and what it must be."""
    config = dict(registration.config)
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InvalidArgument(f"option {option!r}: must be KEY=VALUE")
        known = sorted(set(registration.config) - {ROOT_PATH})
        if key not in known:
            raise InvalidArgument(
                f"option {key}: {registration.id} has no such key; it has "
                + (", ".join(known) or "none")
            )
        config[key] = _value(key, text, registration.config[key])
    return config


def _value(key: str, text: str, default: Any) -> Any:
    wanted = type(default)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if wanted is str and not isinstance(value, str):
        value = text
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InvalidArgument(f"option {key}: {text!r} is no {wanted.__name__}")
    return value


class Context:
    """A ``contracts.plugins.PluginContext`` for a plugin that is alone."""

    def __init__(
        self, root: str, address: str, config: Mapping[str, Any], closers: AsyncExitStack
    ) -> None:
        self.root = root
        self.state = f"{root}/state"
        self.address = address
        self.ttrpc_address = f"{address}.ttrpc"
        self.config = config
        self.plugins: PluginRegistry = _Alone()
        self._closers = closers

    def get(self, type: str, id: str = "") -> Any:
        raise NotFound(f"no plugin of type {type}: the snapshotter is served alone")

    def all(self, type: str) -> Mapping[str, Any]:
        return {}

    def export(self, key: str, value: str) -> None:
        log.info("%s is %s", key, value)

    def capability(self, *names: str) -> None:
        log.info("capabilities for [proxy_plugins]: %s", ", ".join(names))

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        self._closers.push_async_callback(close)


class _Alone:
    """The registry of a plugin that is alone."""

    def statuses(self) -> Sequence[PluginStatus]:
        return ()

    def instance(self, type: str, id: str) -> Any:
        raise NotFound(f"plugin {type}.{id}: not found")
