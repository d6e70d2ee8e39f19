"""``sctl plugins``: what the daemon is made of, and what did not start."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import connect
from ..output import listing, show

if TYPE_CHECKING:
    from protos.containerd.services.introspection.v1.introspection_pb2 import Plugin


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("ls", list_plugins, "list the daemon's plugins", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as type==..., id~=...")
    verb.add_argument(
        "--detailed", "-d", action="store_true", help="show everything about each plugin"
    )
    quiet_flag(verb, "plugin ids")
    format_flag(verb)


def list_plugins(args: argparse.Namespace) -> None:
    """Prints the plugins that match."""
    from protos.containerd.services.introspection.v1.introspection_pb2 import PluginsRequest

    with connect(args) as daemon:
        plugins = daemon.introspection.Plugins(PluginsRequest(filters=args.filters)).plugins
    records = [_record(plugin) for plugin in plugins]
    if args.quiet:
        for record in records:
            show(record["id"])
    elif args.detailed and args.format == "table":
        for record in records:
            _show_detailed(record)
    else:
        columns = [("TYPE", "type"), ("ID", "id"), ("PLATFORMS", "platforms"), ("STATUS", "status")]
        listing(records, columns, format=args.format)


# How containerd's plugins say that they do not apply here, as opposed to failing.
_SKIPPED = "skip plugin"


def _record(plugin: Plugin) -> dict[str, Any]:
    status = "ok"
    if plugin.HasField("init_err"):
        status = "skip" if _SKIPPED in plugin.init_err.message else "error"
    return {
        "type": plugin.type,
        "id": plugin.id,
        "requires": list(plugin.requires),
        "platforms": [
            "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))
            for platform in plugin.platforms
        ],
        "exports": dict(plugin.exports),
        "capabilities": list(plugin.capabilities),
        "status": status,
        "error": plugin.init_err.message,
    }


def _show_detailed(record: dict[str, Any]) -> None:
    show(f"{record['type']}.{record['id']}: {record['status']}")
    for name in ("requires", "platforms", "capabilities"):
        if record[name]:
            show(f"  {name}: {', '.join(record[name])}")
    for key, value in record["exports"].items():
        show(f"  export {key}: {value}")
    if record["error"]:
        show(f"  error: {record['error']}")
