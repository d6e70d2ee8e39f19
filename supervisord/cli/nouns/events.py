"""``sctl events``: what happens in the daemon, as it happens."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

from ..arguments import Noun
from ..connection import connect
from ..output import moment, rfc3339

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from protos.containerd.types.types_pb2 import Envelope


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(follow, "Shows events of all namespaces from now on, until interrupted.")
    parser.add_argument(
        "filters", nargs="*", metavar="FILTER",
        help="""such as topic~=/tasks or 'namespace==default,topic=="/tasks/exit"'""",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="text: one line for people; json: one object per line",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=0, metavar="N", help="stop after N events")


def follow(args: argparse.Namespace) -> None:
    """Prints each event at once."""
    from protos.containerd.services.events.v1.events_pb2 import SubscribeRequest

    seen = 0
    with connect(args) as daemon:
        for envelope in daemon.events.Subscribe(SubscribeRequest(filters=args.filters)):
            sys.stdout.write(_line(envelope, args.format) + "\n")
            sys.stdout.flush()
            seen += 1
            if seen == args.count:
                return


def _line(envelope: Envelope, format: str) -> str:
    when = moment(envelope.timestamp)
    stamp = rfc3339(when) if when else "-"
    event = decode(envelope.event)
    if format == "json":
        return json.dumps(
            {
                "timestamp": stamp,
                "namespace": envelope.namespace,
                "topic": envelope.topic,
                "event": event,
            }
        )
    return f"{stamp} {envelope.namespace} {envelope.topic} {json.dumps(event)}"


def decode(value: AnyMessage) -> dict[str, Any]:
    """The fields of an event by their wire names; of an unknown type only its name and size."""
    from google.protobuf import json_format, symbol_database
    from google.protobuf.message import DecodeError

    name = value.type_url.rpartition("/")[2]
    for module in _modules(name):
        importlib.import_module(module)
    try:
        message = symbol_database.Default().GetSymbol(name)()
        message.ParseFromString(value.value)
    except (KeyError, DecodeError):
        return {"type": name, "bytes": len(value.value)}
    fields: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return fields


def _modules(name: str) -> list[str]:
    """The generated modules that define an event type, and what may lie inside it."""
    if name.startswith("containerd.services.images.v1."):
        return ["protos.containerd.services.images.v1.images_pb2"]
    return ["protos.containerd.events.events_pb2", "protos.containerd.runc.v1.options_pb2"]
