"""``sctl top``: what running containers use, again and again."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ..arguments import Noun
from ..connection import Connection, connect
from ..measure import Usage, decode, usage
from ..output import human_bytes, listing, show_json
from ..values import duration

_CLEAR = "\x1b[H\x1b[J"


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(top, "Shows what running containers use; Ctrl-C ends it.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these containers")
    parser.add_argument(
        "--interval", "-i", type=duration, default=1.0, metavar="TIME", help="(default: 1s)"
    )
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def top(args: argparse.Namespace) -> None:
    """Prints a table per interval; only one where stdout is not a terminal."""
    once = args.once or args.format == "json" or not sys.stdout.isatty()
    interval = max(0.1, args.interval)
    with connect(args) as daemon:
        before, then = _measure(daemon, args.ids), time.monotonic()
        while True:
            time.sleep(interval)
            now = _measure(daemon, args.ids)
            elapsed = time.monotonic() - then
            records = [_record(id, now[id], before.get(id), elapsed) for id in sorted(now)]
            if args.format == "json":
                show_json(records)
                return
            if not once:
                sys.stdout.write(_CLEAR)
            _table(records)
            sys.stdout.flush()
            if once:
                return
            before, then = now, time.monotonic()


def _measure(daemon: Connection, ids: list[str]) -> dict[str, Usage]:
    from protos.containerd.services.tasks.v1.tasks_pb2 import MetricsRequest

    filters = [f"id=={id}" for id in ids]
    found = daemon.tasks.Metrics(MetricsRequest(filters=filters)).metrics
    return {metric.id: usage(decode(metric.data)) for metric in found}


def _record(id: str, now: Usage, before: Usage | None, elapsed: float) -> dict[str, Any]:
    share = 100 * (now.cpu - before.cpu) / elapsed if before is not None else 0.0
    return {
        "id": id,
        "cpu_percent": round(max(0.0, share), 1),
        "memory": now.memory,
        "memory_limit": now.memory_limit,
        "pids": now.pids,
        "read": now.read,
        "written": now.written,
    }


def _table(records: list[dict[str, Any]]) -> None:
    shown = []
    for record in records:
        limit = record["memory_limit"]
        shown.append(
            {
                "id": record["id"],
                "cpu": f"{record['cpu_percent']:.1f}%",
                "memory": human_bytes(record["memory"])
                + (f" / {human_bytes(limit)}" if limit else ""),
                "pids": record["pids"],
                "io": f"{human_bytes(record['read'])} / {human_bytes(record['written'])}",
            }
        )
    columns = [
        ("CONTAINER", "id"),
        ("CPU", "cpu"),
        ("MEMORY", "memory"),
        ("PIDS", "pids"),
        ("READ / WRITTEN", "io"),
    ]
    listing(shown, columns)
