"""``sctl leases``: list, create, remove, and the resources that a lease holds."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import connect
from ..output import listing, moment, show
from ..values import duration, labels_of, pair


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("ls", list_leases, "list leases", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER")
    quiet_flag(verb, "lease ids")
    format_flag(verb)

    verb = noun.verb("create", create, "create a lease and print its id")
    verb.add_argument("labels", nargs="*", type=pair, metavar="KEY=VALUE")
    verb.add_argument("--id", default="", help="the lease's id (default: one is made up)")
    verb.add_argument(
        "--expires", "-x", type=duration, default=86400.0, metavar="TIME",
        help="when the lease ends by itself; 0 for never (default: 24h)",
    )  # fmt: skip

    verb = noun.verb("rm", remove, "remove leases", ["delete", "del", "remove"])
    verb.add_argument("ids", nargs="+", metavar="LEASE")
    verb.add_argument(
        "--sync", action="store_true", help="also collect at once what nothing refers to any more"
    )

    verb = noun.verb("resources", resources, "list what a lease holds")
    verb.add_argument("id", metavar="LEASE")
    format_flag(verb)

    for name, run, summary in (
        ("add-resource", add_resource, "let a lease hold a resource"),
        ("rm-resource", remove_resource, "let a lease drop a resource"),
    ):
        verb = noun.verb(name, run, summary)
        verb.add_argument("id", metavar="LEASE")
        verb.add_argument("type", metavar="TYPE", help="content, ingests or snapshots/NAME")
        verb.add_argument("resource", metavar="ID", help="a digest, a ref or a snapshot key")


def list_leases(args: argparse.Namespace) -> None:
    """Prints the leases that match."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    with connect(args) as daemon:
        leases = daemon.leases.List(wire.ListRequest(filters=args.filters)).leases
    if args.quiet:
        for lease in leases:
            show(lease.id)
        return
    records = [
        {"id": lease.id, "created_at": moment(lease.created_at), "labels": dict(lease.labels)}
        for lease in leases
    ]
    columns = [("ID", "id"), ("CREATED AT", "created_at"), ("LABELS", "labels")]
    listing(records, columns, format=args.format)


def create(args: argparse.Namespace) -> None:
    """Creates a lease."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    labels = labels_of(args.labels)
    if args.expires:
        end = datetime.now(UTC) + timedelta(seconds=args.expires)
        labels["containerd.io/gc.expire"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    # containerd asks for an id; ours makes one up just as well.
    name = args.id or f"{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    with connect(args) as daemon:
        show(daemon.leases.Create(wire.CreateRequest(id=name, labels=labels)).lease.id)


def remove(args: argparse.Namespace) -> None:
    """Removes leases; with ``--sync`` the last removal waits for a collection."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    with connect(args) as daemon:
        for id in args.ids:
            sync = args.sync and id == args.ids[-1]
            daemon.leases.Delete(wire.DeleteRequest(id=id, sync=sync))
            show(id)


def resources(args: argparse.Namespace) -> None:
    """Prints what a lease holds."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    with connect(args) as daemon:
        held = daemon.leases.ListResources(wire.ListResourcesRequest(id=args.id)).resources
    records = [{"type": item.type, "id": item.id} for item in held]
    listing(records, [("TYPE", "type"), ("ID", "id")], format=args.format)


def add_resource(args: argparse.Namespace) -> None:
    """Adds one resource."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    resource = wire.Resource(type=args.type, id=args.resource)
    with connect(args) as daemon:
        daemon.leases.AddResource(wire.AddResourceRequest(id=args.id, resource=resource))


def remove_resource(args: argparse.Namespace) -> None:
    """Drops one resource."""
    from protos.containerd.services.leases.v1 import leases_pb2 as wire

    resource = wire.Resource(type=args.type, id=args.resource)
    with connect(args) as daemon:
        daemon.leases.DeleteResource(wire.DeleteResourceRequest(id=args.id, resource=resource))
