"""``sctl gc``: collects garbage now, or shows what a collection would take."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import grpc

from ..arguments import Noun, format_flag
from ..connection import Connection, connect
from ..errors import CliError, is_code
from ..output import human_bytes, listing, show, show_json
from ..values import require


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(
        collect,
        "Removes what nothing refers to any more, in all namespaces, and waits until it is gone.\n"
        "The daemon does so by itself after things were deleted.\n"
        "'sctl why THING' tells what keeps a thing.",
    )
    parser.add_argument(
        "--dry-run", "-n", action="store_true", help="remove nothing, list what would go"
    )
    parser.add_argument(
        "--only", default="", metavar="NAMESPACE", help="with --dry-run: only this namespace"
    )
    format_flag(parser)


def collect(args: argparse.Namespace) -> None:
    """One collection, or a look at what it would do."""
    require(args.dry_run or not args.only, "gc: --only goes with --dry-run alone")
    with connect(args) as daemon:
        if args.dry_run:
            _preview(daemon, args.only, args.format)
        else:
            _collect(daemon, args.format)


def _collect(daemon: Connection, format: str) -> None:
    from protos.supervisord.gc.v1.gc_pb2 import CollectRequest

    try:
        answer = daemon.gc.Collect(CollectRequest())
    except grpc.RpcError as error:
        if not is_code(error, "UNIMPLEMENTED"):
            raise
        _by_a_lease(daemon, format)
        return
    records = dict(sorted(answer.records.items()))
    seconds = answer.took.ToNanoseconds() / 1e9
    if format == "json":
        show_json({"records": records, "seconds": seconds})
        return
    count = sum(records.values())
    if not count:
        show(f"nothing to collect ({seconds * 1e3:.0f} ms)")
        return
    parts = ", ".join(_counted(number, type) for type, number in records.items())
    show(f"collected {_things(count)} in {seconds * 1e3:.0f} ms: {parts}")


def _by_a_lease(daemon: Connection, format: str) -> None:
    """containerd collects when a lease is deleted and the caller asks to wait for it."""
    from protos.containerd.services.leases.v1.leases_pb2 import CreateRequest, DeleteRequest

    began = time.monotonic()
    name = f"sctl-gc-{time.time_ns()}-{os.urandom(4).hex()}"
    lease = daemon.leases.Create(CreateRequest(id=name)).lease.id
    daemon.leases.Delete(DeleteRequest(id=lease, sync=True))
    seconds = time.monotonic() - began
    if format == "json":
        show_json({"seconds": round(seconds, 3)})
    else:
        show(f"collected in {seconds * 1e3:.0f} ms; what went, this daemon does not tell")


def _preview(daemon: Connection, namespace: str, format: str) -> None:
    from protos.supervisord.gc.v1.gc_pb2 import PreviewRequest

    records: list[dict[str, Any]] = []
    try:
        for part in daemon.gc.Preview(PreviewRequest(namespace=namespace)):
            records += [
                {"namespace": d.namespace, "type": d.type, "id": d.id, "size": d.size}
                for d in part.doomed
            ]
    except grpc.RpcError as error:
        if is_code(error, "UNIMPLEMENTED"):
            raise CliError("this daemon cannot tell what it would collect") from None
        raise
    if format == "json":
        show_json(records)
        return
    if not records:
        show("nothing would go")
        return
    columns = [("NAMESPACE", "namespace"), ("TYPE", "type"), ("SIZE", "shown"), ("ID", "id")]
    listing([{**record, "shown": human_bytes(record["size"])} for record in records], columns)
    total = sum(record["size"] for record in records)
    show(f"\n{_things(len(records))} would go, {human_bytes(total)}")


def _counted(count: int, type: str) -> str:
    noun, _, snapshotter = type.partition("/")
    if snapshotter:
        return f"{count} {snapshotter} {noun}"
    return f"{count} {'blobs' if type == 'content' else type}"


def _things(count: int) -> str:
    return f"{count} thing{'' if count == 1 else 's'}"
