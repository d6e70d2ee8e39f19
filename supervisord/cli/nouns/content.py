"""``sctl content``: list, get, ingest, label, remove blobs, and what is being written."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack
from typing import Any, BinaryIO, cast

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import connect
from ..errors import CliError, Failures
from ..output import age, human_bytes, labels_line, listing, moment, show
from ..values import label_change, labels_of, pair, require, size


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("ls", list_content, "list blobs", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as size>... or labels.x")
    quiet_flag(verb, "digests")
    format_flag(verb)

    verb = noun.verb("get", get, "write a blob to stdout")
    verb.add_argument("digest", metavar="DIGEST")

    verb = noun.verb("ingest", ingest, "store stdin as a blob")
    verb.add_argument("ref", metavar="REF", help="a name for the ingest while it lasts")
    verb.add_argument("--expected-size", type=size, default=0, metavar="SIZE")
    verb.add_argument("--expected-digest", default="", metavar="DIGEST")
    verb.add_argument("--label", action="append", default=[], type=pair, metavar="KEY=VALUE")

    verb = noun.verb("label", label, "set and clear labels; an empty value clears one")
    verb.add_argument("digest", metavar="DIGEST")
    verb.add_argument("labels", nargs="+", type=label_change, metavar="KEY=VALUE")

    verb = noun.verb("active", active, "list what is being written")
    verb.add_argument("pattern", nargs="?", default="", metavar="REGEXP", help="only these refs")
    format_flag(verb)

    verb = noun.verb("abort", abort, "drop ingests that were left behind")
    verb.add_argument("refs", nargs="+", metavar="REF")

    verb = noun.verb("rm", remove, "remove blobs", ["delete", "del", "remove"])
    verb.add_argument("digests", nargs="+", metavar="DIGEST")


def list_content(args: argparse.Namespace) -> None:
    """Prints the blobs that match."""
    from protos.containerd.services.content.v1.content_pb2 import ListContentRequest

    records: list[dict[str, Any]] = []
    with connect(args) as daemon:
        for answer in daemon.content.List(ListContentRequest(filters=args.filters)):
            for info in answer.info:
                if args.quiet:
                    show(info.digest)
                    continue
                record: dict[str, Any] = {
                    "digest": info.digest,
                    "size": info.size,
                    "created_at": moment(info.created_at),
                    "updated_at": moment(info.updated_at),
                    "labels": dict(info.labels),
                }
                if args.format == "table":
                    record["size"] = human_bytes(info.size)
                    record["age"] = age(record["created_at"])
                records.append(record)
    if not args.quiet:
        columns = [("DIGEST", "digest"), ("SIZE", "size"), ("AGE", "age"), ("LABELS", "labels")]
        listing(records, columns, format=args.format)


def get(args: argparse.Namespace) -> None:
    """Streams a blob to stdout."""
    from ..images.blobs import chunks

    with connect(args) as daemon:
        for chunk in chunks(daemon, args.digest):
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def ingest(args: argparse.Namespace) -> None:
    """Streams stdin into the store and prints the digest."""
    from ..images.blobs import upload

    require(not sys.stdin.isatty(), "content ingest: stdin is a terminal")
    with ExitStack() as stack:
        source = cast(BinaryIO, stack.enter_context(open(0, "rb", closefd=False)))
        daemon = stack.enter_context(connect(args))
        digest = upload(
            daemon,
            source,
            args.expected_size or -1,
            expected=args.expected_digest,
            ref=args.ref,
            labels=labels_of(args.label),
        )
        require(not args.expected_size or not source.read(1),
                f"the input is longer than {args.expected_size} bytes")  # fmt: skip
    show(digest)


def label(args: argparse.Namespace) -> None:
    """Changes labels and prints all."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from protos.containerd.services.content.v1 import content_pb2 as wire

    changes = labels_of(args.labels)
    request = wire.UpdateRequest(
        info=wire.Info(digest=args.digest, labels=changes),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in changes]),
    )
    with connect(args) as daemon:
        show(labels_line(daemon.content.Update(request).info.labels))


def active(args: argparse.Namespace) -> None:
    """Prints the ingests under way."""
    from protos.containerd.services.content.v1.content_pb2 import ListStatusesRequest

    try:
        pattern = re.compile(args.pattern)
    except re.error as error:
        raise CliError(f"{args.pattern!r} is not a regular expression: {error}") from None
    with connect(args) as daemon:
        statuses = daemon.content.ListStatuses(ListStatusesRequest()).statuses
    records = [
        {
            "ref": item.ref,
            "offset": item.offset,
            "total": item.total,
            "size": human_bytes(item.offset),
            "age": age(moment(item.started_at)),
            "started_at": moment(item.started_at),
            "updated_at": moment(item.updated_at),
        }
        for item in statuses
        if pattern.search(item.ref)
    ]
    listing(records, [("REF", "ref"), ("SIZE", "size"), ("AGE", "age")], format=args.format)


def abort(args: argparse.Namespace) -> None:
    """Drops ingests."""
    from protos.containerd.services.content.v1.content_pb2 import AbortRequest

    with connect(args) as daemon:
        for ref in args.refs:
            daemon.content.Abort(AbortRequest(ref=ref))
            show(ref)


def remove(args: argparse.Namespace) -> None:
    """Removes blobs; goes on after a failure."""
    from protos.containerd.services.content.v1.content_pb2 import DeleteContentRequest

    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for digest in args.digests:
            with failures.of(digest):
                daemon.content.Delete(DeleteContentRequest(digest=digest))
                show(digest)
    failures.check()
