"""``[proxy_plugins.NAME]``: plugins in other processes, with the keys that containerd has for them.

``checked`` is called by ``daemon.config`` for each table; ``registrations`` makes plugins of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supervisord.contracts.durations import seconds
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.plugins import PluginContext, Registration

if TYPE_CHECKING:
    from supervisord.proxy.channel import Channel, Channels

SNAPSHOTTER = "io.containerd.snapshotter.v1"
DIFFER = "io.containerd.differ.v1"
CONTROLLER = "io.containerd.sandbox.controller.v1"
CONTENT = "io.containerd.content.v1"

TYPES: Mapping[str, str] = {"snapshot": SNAPSHOTTER, "diff": DIFFER}
"""The short names of the types that can be elsewhere."""

KEYS: Mapping[str, tuple[Any, str]] = {
    "type": ("", 'What it is: "snapshot", "diff" or "sandbox" (or the whole type).'),
    "address": ("", "Unix socket on which it serves; it need not be there yet."),
    "platform": ("", "OS/ARCHITECTURE that it is for; empty for this machine's."),
    "exports": ({}, "What `ctr plugins ls -d` tells of it, besides its address."),
    "capabilities": ([], 'What it can do, for clients that ask: "rebase", for example.'),
    "timeout": ("10m", "How long one call may take; one that only looks up at most 30 s."),
}

_PLATFORM = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,2}\Z")


def checked(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The table over the defaults, with its whole type. Raises InvalidArgument naming the key."""
    proxy = {**{key: default for key, (default, _) in KEYS.items()}, **table}
    check_identifier(name, "name")
    kind = proxy["type"]
    if kind in ("content", CONTENT):
        raise InvalidArgument("type: content is kept by the daemon itself, and cannot be elsewhere")
    if kind in ("sandbox", CONTROLLER):
        raise InvalidArgument("type: sandboxes are run by shims of this daemon, and not elsewhere")
    if kind not in TYPES and kind not in TYPES.values():
        raise InvalidArgument(f"type: {kind!r} is none of {', '.join(TYPES)}")
    proxy["type"] = TYPES.get(kind, kind)
    path = proxy["address"].removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidArgument(f"address: {proxy['address']!r} is not the absolute path of a socket")
    proxy["address"] = path
    if proxy["platform"] and _PLATFORM.match(proxy["platform"]) is None:
        raise InvalidArgument(f"platform: {proxy['platform']!r} is not OS/ARCHITECTURE")
    for key, value in proxy["exports"].items():
        if not isinstance(value, str):
            raise InvalidArgument(f"exports.{key}: must be a string")
    if seconds(proxy["timeout"], "timeout") <= 0:
        raise InvalidArgument("timeout: must be above zero")
    return proxy


def registrations(proxies: Mapping[str, Mapping[str, Any]]) -> Sequence[Registration]:
    """A plugin for each. Nothing is connected before something is asked."""
    channels: list[Channels] = []
    return [_registration(name, proxy, channels) for name, proxy in proxies.items()]


def _registration(name: str, proxy: Mapping[str, Any], shared: list[Channels]) -> Registration:
    async def start(context: PluginContext) -> Any:
        from supervisord.proxy.channel import Channels

        for key, value in proxy["exports"].items():
            context.export(key, value)
        context.export("address", proxy["address"])
        context.capability(*proxy["capabilities"])
        if not shared:
            shared.append(Channels())
        channel = shared[0].get(proxy["address"])
        context.on_close(channel.close)
        return _plugin(name, proxy, channel)

    return Registration(proxy["type"], name, start, platform=proxy["platform"])


def _plugin(name: str, proxy: Mapping[str, Any], channel: Channel) -> Any:
    limit = seconds(proxy["timeout"], "timeout")
    if proxy["type"] == SNAPSHOTTER:
        from supervisord.proxy.snapshotter import ProxySnapshotter

        return ProxySnapshotter(channel, name, seconds=limit)
    from supervisord.proxy.differ import ProxyDiffer

    return ProxyDiffer(channel, seconds=limit)
