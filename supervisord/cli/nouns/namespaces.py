"""``sctl namespaces``: create, label, list, remove."""

from __future__ import annotations

import argparse

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import connect
from ..errors import Failures
from ..output import labels_line, listing, show
from ..values import label_change, labels_of, pair


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("create", create, "create a namespace", ["c"])
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("labels", nargs="*", type=pair, metavar="KEY=VALUE")

    verb = noun.verb("ls", list_namespaces, "list namespaces", ["list"])
    quiet_flag(verb, "names")
    format_flag(verb)

    verb = noun.verb("label", label, "set and clear labels; an empty value clears one")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("labels", nargs="+", type=label_change, metavar="KEY=VALUE")

    verb = noun.verb("rm", remove, "remove empty namespaces", ["remove", "delete"])
    verb.add_argument("names", nargs="+", metavar="NAME")


def create(args: argparse.Namespace) -> None:
    """Creates one namespace."""
    from protos.containerd.services.namespaces.v1 import namespaces_pb2 as wire

    space = wire.Namespace(name=args.name, labels=labels_of(args.labels))
    with connect(args) as daemon:
        daemon.namespaces.Create(wire.CreateNamespaceRequest(namespace=space))


def list_namespaces(args: argparse.Namespace) -> None:
    """Prints all namespaces."""
    from protos.containerd.services.namespaces.v1 import namespaces_pb2 as wire

    with connect(args) as daemon:
        spaces = daemon.namespaces.List(wire.ListNamespacesRequest()).namespaces
    if args.quiet:
        for space in spaces:
            show(space.name)
        return
    records = [{"name": space.name, "labels": dict(space.labels)} for space in spaces]
    listing(records, [("NAME", "name"), ("LABELS", "labels")], format=args.format)


def label(args: argparse.Namespace) -> None:
    """Changes some labels and prints all."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from protos.containerd.services.namespaces.v1 import namespaces_pb2 as wire

    changes = labels_of(args.labels)
    request = wire.UpdateNamespaceRequest(
        namespace=wire.Namespace(name=args.name, labels=changes),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in changes]),
    )
    with connect(args) as daemon:
        daemon.namespaces.Update(request)
        # Not every containerd answers the update with the labels that result.
        found = daemon.namespaces.Get(wire.GetNamespaceRequest(name=args.name))
        show(labels_line(found.namespace.labels))


def remove(args: argparse.Namespace) -> None:
    """Removes each; one that cannot be removed does not keep the others."""
    from protos.containerd.services.namespaces.v1 import namespaces_pb2 as wire

    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for name in args.names:
            with failures.of(name):
                daemon.namespaces.Delete(wire.DeleteNamespaceRequest(name=name))
                show(name)
    failures.check()
