"""``sctl version``: what sctl is, and what the daemon says it is."""

from __future__ import annotations

import argparse

from supervisord import __version__

from ..arguments import Noun, format_flag
from ..connection import connect
from ..output import show, show_json


def register(noun: Noun) -> None:
    """Declares the command."""
    format_flag(noun.command(show_versions))


def show_versions(args: argparse.Namespace) -> None:
    """Prints the client's and the server's versions."""
    import platform

    from google.protobuf.empty_pb2 import Empty

    client = {"version": __version__, "python": platform.python_version()}
    with connect(args) as daemon:
        answer = daemon.version.Version(Empty())
        uuid = daemon.introspection.Server(Empty()).uuid
    server = {"version": answer.version, "revision": answer.revision, "uuid": uuid}
    if args.format == "json":
        show_json({"client": client, "server": server})
        return
    show("Client:")
    show(f"  Version:  {client['version']}")
    show(f"  Python:   {client['python']}")
    show("\nServer:")
    show(f"  Version:  {server['version']}")
    show(f"  Revision: {server['revision']}")
    show(f"  UUID:     {server['uuid']}")
