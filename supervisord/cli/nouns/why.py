"""``sctl why``: what keeps a thing from garbage collection, or when it goes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import grpc

from ..arguments import Noun, format_flag
from ..connection import connect
from ..errors import CliError, is_code
from ..output import moment, show, show_json

if TYPE_CHECKING:
    from protos.supervisord.gc.v1.gc_pb2 import Chain, Explanation, Link

_WORDS = {
    "content": "blob",
    "images": "image",
    "containers": "container",
    "sandboxes": "sandbox",
    "leases": "lease",
    "ingests": "ingest",
}
_TYPES = ("content", "images", "containers", "sandboxes", "leases", "ingests", "snapshots")
_ROOTS = ("images", "containers", "sandboxes", "leases")
_LONG_RUN = 4


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(
        why,
        "Tells what keeps a thing from garbage collection: the way down to it from every image,\n"
        "container, lease or gc.root label that does. If nothing does, tells when it goes.",
    )
    parser.add_argument(
        "things", nargs="+", metavar="THING",
        help="a digest or its first digits, a snapshot's key, an image's name, a container's id ..",
    )  # fmt: skip
    parser.add_argument(
        "--type", default="", metavar="TYPE",
        help=f"only things of this type: {', '.join(_TYPES)} or snapshots/NAME",
    )  # fmt: skip
    format_flag(parser)


def why(args: argparse.Namespace) -> None:
    """Explains each thing."""
    from protos.supervisord.gc.v1.gc_pb2 import ExplainRequest

    answers = []
    with connect(args) as daemon:
        try:
            for thing in args.things:
                answers.append(daemon.gc.Explain(ExplainRequest(id=thing, type=args.type)))
        except grpc.RpcError as error:
            if is_code(error, "UNIMPLEMENTED"):
                raise CliError("this daemon cannot tell what keeps a thing") from None
            raise
    if args.format == "json":
        show_json([_record(each, answer) for answer in answers for each in answer.explanations])
        return
    first = True
    for answer in answers:
        due = moment(answer.next_collection)
        for explanation in answer.explanations:
            if not first:
                show("")
            first = False
            for line in _lines(explanation, due):
                show(line)


def _record(explanation: Explanation, answer: Any) -> dict[str, Any]:
    kept = bool(explanation.chains)
    return {
        "type": explanation.type,
        "id": explanation.id,
        "kept": kept,
        "until": moment(explanation.until),
        "next_collection": None if kept else moment(answer.next_collection),
        "chains": [
            {
                "until": moment(chain.until),
                "links": [{"type": n.type, "id": n.id, "reason": n.reason} for n in chain.links],
            }
            for chain in explanation.chains
        ],
        "more": explanation.more,
        "shared_with": list(explanation.shared_with),
    }


def _lines(explanation: Explanation, due: datetime | None) -> Iterator[str]:
    name = _name(explanation.type, explanation.id)
    count = len(explanation.chains) + explanation.more
    if not count:
        yield f"{name}: nothing keeps it; it goes with the next collection, {_when(due)}"
    elif count == 1 and len(explanation.chains[0].links) == 1:
        yield f"{name}: {_itself(explanation.chains[0])}"
    else:
        end = moment(explanation.until)
        last = f", the last{_until(end)[1:]}" if end is not None and count > 1 else ""
        yield f"{name}: kept by {count} {'thing' if count == 1 else 'things'}{last}"
        for chain in explanation.chains:
            yield from _tree(chain)
        if explanation.more:
            yield f"  .. and {explanation.more} more"
    if explanation.shared_with:
        yield f"  its file is shared with namespace {', '.join(explanation.shared_with)}"


def _tree(chain: Chain) -> Iterator[str]:
    """A line for each link, each further in than the one that keeps it; long runs are cut."""
    root, *links = chain.links
    yield f"  {_name(root.type, root.id)}{_root_note(root)}{_until(moment(chain.until))}"
    depth = 2
    for (type, reason), run in groupby(links, lambda link: (link.type, link.reason)):
        shown = list(run)
        for link in _ends(shown):
            if link is None:
                yield f"{'  ' * depth}.. {len(shown) - 2} more, each {reason} of the one before"
            else:
                yield f"{'  ' * depth}{reason}: {_name(type, link.id)}"
            depth += 1


def _ends(run: Sequence[Link]) -> list[Link | None]:
    """A run of links, of a long one only the first and the last, with None between them."""
    return list(run) if len(run) <= _LONG_RUN else [run[0], None, run[-1]]


def _root_note(root: Link) -> str:
    """Why it is a root, where its type does not say so."""
    return "" if root.type in _ROOTS else f", {root.reason}"


def _itself(chain: Chain) -> str:
    """Of a thing that nothing else keeps."""
    (root,) = chain.links
    end = _until(moment(chain.until))
    if root.type in _ROOTS:
        return f"stays until it is removed{', or' * bool(end)}{end.removeprefix(',')}"
    if "/" in root.reason:
        return f"kept by its own label {root.reason}"
    return f"kept{end.lstrip(',')}: it is {root.reason}" if end else f"kept: it is {root.reason}"


def _name(type: str, id: str) -> str:
    noun, _, snapshotter = type.partition("/")
    if noun == "snapshots":
        return f"{snapshotter} snapshot {id}"
    return f"{_WORDS.get(type, type)} {id}"


def _until(end: datetime | None) -> str:
    if end is None:
        return ""
    return f", until {end:%Y-%m-%d %H:%M:%S} UTC, {_span(end)}"


def _when(due: datetime | None) -> str:
    if due is None:
        return "for which nothing has called yet ('sctl gc' does)"
    return _span(due)


def _span(end: datetime) -> str:
    """``in 3 hours``, in the largest unit that is at least two."""
    seconds = (end - datetime.now(UTC)).total_seconds()
    if seconds < 1:
        return "now"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"in {seconds / length:.0f} {unit}"
    return f"in {seconds:.0f} second{'' if round(seconds) == 1 else 's'}"
