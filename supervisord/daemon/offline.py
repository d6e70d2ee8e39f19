"""``supervisord check`` and ``supervisord restore``: what can be done while no daemon runs.

Starts no more than what stores things, under the lock of the root. A damaged database is replaced
here, before anybody opens it, by what can still be read of it; then the same check runs as in a
daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from supervisord.cli.errors import CliError, Exit
from supervisord.cli.findings import Findings
from supervisord.contracts.checks import Finding, Options, Report
from supervisord.contracts.errors import Error
from supervisord.contracts.plugins import Registration
from supervisord.services.check import summed_up, to_wire

from .config import Config
from .databases import Kept, kept_databases
from .lock import RootLock, RootTaken
from .plugins import Graph, GraphError

METADATA = "io.containerd.metadata.v1"
_STORING = (
    "io.containerd.content.v1",
    "io.containerd.event.v1",
    "io.containerd.snapshotter.v1",
    METADATA,
)


def run(config: Config, registrations: Sequence[Registration], arguments: Any) -> int:
    """Runs the command; answers the exit status: 0 when nothing is wrong any more, 2 when
    something is left, 1 when it could not be done."""
    logging.basicConfig(format="supervisord: %(message)s", level=logging.ERROR)
    lock = RootLock(config.root)
    try:
        if not Path(config.root).is_dir():
            raise CliError(f"root: there is no folder {config.root}")
        lock.take()
        if arguments.command == "restore":
            from .restore import restore

            restore(Path(arguments.file), kept_databases(config, registrations))
        return asyncio.run(_check(config, registrations, arguments))
    except Exit as exit:
        return exit.code
    except (RootTaken, GraphError, CliError, Error, OSError, sqlite3.Error) as error:
        print(f"supervisord: {error}", file=sys.stderr)
        return 1
    finally:
        lock.drop()


async def _check(
    config: Config, registrations: Sequence[Registration], arguments: argparse.Namespace
) -> int:
    given = vars(arguments)
    repair = bool(given.get("repair")) or arguments.command == "restore"
    quick = bool(given.get("quick")) or arguments.command == "restore"
    options = Options(quick, repair, given.get("namespace") or "default")
    findings = Findings(format=given.get("format") or "table")
    unreadable = 0
    for kept in kept_databases(config, registrations):
        for found in await asyncio.to_thread(_mended, kept, repair=repair):
            unreadable += not found.repaired
            findings.add(to_wire(found).finding)
    if unreadable and not repair:
        findings.end(repair=repair)
    async for message in summed_up(_reports(config, registrations, options)):
        findings.take(message)
    findings.end(repair=repair)
    return 0


def _mended(kept: Kept, *, repair: bool) -> list[Finding]:
    """What is wrong with a database file; with ``repair`` it is replaced by what can be read."""
    if not kept.path.exists():
        return []
    lines = kept.faults()
    if not lines:
        return []
    remedy = "what can be read of it is taken over into a new one"
    if repair:
        done = kept.salvage()
        lost = f", and some of {', '.join(done.damaged)} is lost" if done.damaged else ""
        taken = f"{done.rows} rows were taken over{lost}" if done.rows else "nothing could be read"
        remedy = f"{taken}; the old file is {done.kept.name}"
    found = [Finding("database", str(kept.path), "damaged", lines[0], "", remedy, repair)]
    if repair:
        moved = kept.set_aside_folders()
        found += [
            Finding("folder", name, "orphan", "the index has lost it", "",
                    f"moved to {kept.quarantine}", True)
            for name in moved
        ]  # fmt: skip
    return found


async def _reports(
    config: Config, registrations: Sequence[Registration], options: Options
) -> AsyncGenerator[Report, None]:
    """The check of the stores, which are open meanwhile."""
    graph = Graph(
        [each for each in registrations if each.type in _STORING],
        root=config.root,
        state=config.state,
        address=config.address,
        ttrpc_address=config.ttrpc_address,
        config=config.plugins,
        disabled=config["top"]["disabled_plugins"],
    )
    try:
        await graph.start()
        for reason in graph.reasons("io.containerd.snapshotter.v1"):
            if "damaged" in reason or "malformed" in reason:
                yield Finding("database", reason.partition(": ")[0], "unreadable", reason)
        checker = graph.instance(METADATA, "sqlite").checker
        async for report in checker.check(options):
            yield report
    finally:
        await graph.close()
