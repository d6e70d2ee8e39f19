"""``sctl check``: do records, blobs and snapshots fit each other, and what can be repaired?"""

from __future__ import annotations

import argparse

from ..arguments import Noun, format_flag
from ..connection import connect

_ABOUT = """\
Checks all that the daemon stores, in all namespaces, while it goes on working: whether
databases are whole, records can be read, blobs have their digests, and snapshots their folders.

Ends with 0 when nothing is wrong, or all of it was repaired, and with 2 when something is left.
Where the daemon does not start, 'supervisord check' does the same without it."""


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(check, _ABOUT)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="compare names and sizes only, and read no data")
    flag("--repair", action="store_true",
         help="set damaged things aside, and give records to what has lost them")  # fmt: skip
    format_flag(parser)


def check(args: argparse.Namespace) -> None:
    """Runs one check, and shows what it finds; blobs without a record go to ``--namespace``."""
    from protos.supervisord.check.v1.check_pb2 import RunRequest
    from protos.supervisord.check.v1.check_pb2_grpc import CheckStub

    from ..findings import Findings
    from ..images.progress import Bars

    request = RunRequest(quick=args.quick, repair=args.repair, namespace=args.namespace)
    findings = Findings(format=args.format)
    with connect(args) as daemon, Bars() as bars:
        findings.follow(CheckStub(daemon.channel).Run(request), bars)
    findings.end(repair=args.repair)
