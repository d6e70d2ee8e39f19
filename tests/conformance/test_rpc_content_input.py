"""What a hostile client sends to the content service: refused with the field and the rule named,
or harmless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.content.v1 import content_pb2 as pb

from .content.session import ROOT, Session, info, listed, read, refs, write
from .daemons import Daemon
from .ocitar import sha256
from .wire import Wire

Code = grpc.StatusCode
INVALID = Code.INVALID_ARGUMENT
GOOD = sha256(b"good")
FAR = (1 << 63) - 1
DIGESTS = {
    "empty": "",
    "no algorithm": "0" * 64,
    "no hex": "sha256:",
    "short": "sha256:" + "0" * 63,
    "long": "sha256:" + "0" * 65,
    "upper case": "sha256:" + "A" * 64,
    "not hex": "sha256:" + "g" * 64,
    "leads out": "sha256:../../../../etc/passwd",
    "leads out of the algorithm": "../sha256:" + "0" * 64,
    "zero byte": "sha256:" + "0" * 63 + "\0",
    "new line": GOOD + "\n",
    "unknown algorithm": "md5:" + "0" * 32,
    "a megabyte": "sha256:" + "0" * (1 << 20),
}
REFS = {
    "slashes": "/../../../../tmp/x",
    "dots": "..",
    "spaces and more": " a b\t\r\n'\"%s;--",
    "unicode": "\u00e9\u4e16\U0001f600\u202e",
    "as long as may be": "x" * 4096,
}


def writes(**fields: Any) -> Callable[[Wire], Any]:
    """A Write of one request."""
    request = pb.WriteContentRequest(**{"action": pb.COMMIT, "ref": "r", "data": b"good", **fields})
    return lambda wire: list(wire.content.Write(iter([request])))


@dataclass(frozen=True)
class Row:
    """A malformed request, the field that its refusal must name, and containerd's code; None
    where it takes the request or ends in another way."""

    name: str
    call: Callable[[Wire], Any]
    field: str
    reference: grpc.StatusCode | None = INVALID


def with_digest(digest: str) -> dict[str, Callable[[Wire], Any]]:
    """The calls that name a blob."""
    change = pb.UpdateRequest(info=pb.Info(digest=digest, labels={"a": "1"}))
    return {
        "info": lambda w: w.content.Info(pb.InfoRequest(digest=digest)),
        "read": lambda w: list(w.content.Read(pb.ReadContentRequest(digest=digest))),
        "delete": lambda w: w.content.Delete(pb.DeleteContentRequest(digest=digest)),
        "update": lambda w: w.content.Update(change),
    }


def digests() -> list[Row]:
    """Each call with each malformed digest."""
    rows = []
    for name, digest in DIGESTS.items():
        long = len(digest) > 10_000  # containerd repeats it, in more than a status can hold
        for method, call in with_digest(digest).items():
            code = None if long else INVALID
            rows.append(Row(f"{method} digest {name}", call, "digest", code))
        if digest:
            early = None if long else Code.FAILED_PRECONDITION  # there it is one that differs
            rows.append(Row(f"write expected {name}", writes(expected=digest), "expected", early))
    return rows


ROWS = [
    *digests(),
    Row("update without info", lambda w: w.content.Update(pb.UpdateRequest()), "info", None),
    Row("write ref empty", writes(ref=""), "ref"),
    Row("write ref with a zero byte", writes(ref="a\0b"), "ref", None),
    Row("write ref too long", writes(ref="x" * 4097), "ref", None),
    Row("write offset negative", writes(offset=-1), "offset", None),
    Row("write total negative", writes(total=-1), "total", None),
    Row("write action unknown", writes(action=7), "action", None),
    Row("write label too long", writes(labels={"k": "v" * 4096}), "label"),
    Row("write label key too long", writes(labels={"k" * 4097: ""}), "label"),
    Row("write label in many bytes", writes(labels={"k": "\u00e9" * 2048}), "label"),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_is_refused(row: Row, wire: Wire) -> None:
    if not wire.ours and row.reference is None:
        pytest.skip("containerd accepts this or ends the call in another way")
    told = ""
    with wire.refused(INVALID, row.field, reference=row.reference):
        try:
            row.call(wire)
        except grpc.RpcError as error:
            told = str(error.details())
            raise
    assert listed(wire) == []
    if wire.ours:
        assert len(told) < 500, "an error is no echo"


@pytest.mark.parametrize("ref", REFS.values(), ids=REFS)
def test_any_text_is_a_ref(wire: Wire, daemon: Daemon, ref: str) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref=ref, data=b"12")
        session.end()
    assert refs(wire) == [ref]
    assert wire.content.Status(pb.StatusRequest(ref=ref)).status.offset == 2
    if wire.ours:
        outside = [path for path in daemon.base.rglob("*") if path.name == ref.rsplit("/")[-1]]
        assert outside == []
    wire.content.Abort(pb.AbortRequest(ref=ref))
    assert refs(wire) == []


def test_refs_that_cannot_be_are_not_found(wire: Wire) -> None:
    long = ["x" * 100_000] if wire.ours else []  # containerd's answer is too long for a status
    for ref in ("", "a\0b", "../r", *long):
        with wire.refused(Code.NOT_FOUND, "reference"):
            wire.content.Status(pb.StatusRequest(ref=ref))
        with wire.refused(Code.NOT_FOUND, "reference"):
            wire.content.Abort(pb.AbortRequest(ref=ref))


def test_ranges_that_cannot_be(wire: Wire) -> None:
    digest = write(wire, b"0123456789")
    assert read(wire, digest, -5, 3) == b"012"
    assert read(wire, digest, 3, -1) == b"3456789"
    for offset in (11, FAR):
        with wire.refused(Code.OUT_OF_RANGE, "10 bytes"):
            read(wire, digest, offset)
    if wire.ours:  # 1.6 refuses a size beyond the end
        assert read(wire, digest, 4, FAR) == b"456789"


def test_offsets_far_away(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12")
        with wire.refused(Code.OUT_OF_RANGE, "offset"):
            session.send(pb.WRITE, offset=FAR, data=b"3")
    with Session(wire) as session, wire.refused(Code.FAILED_PRECONDITION, "size"):
        session.send(pb.COMMIT, ref="r", offset=2, total=FAR)


def test_many_labels(wire: Wire) -> None:
    """Each label has a limit; a blob has none but that of a message."""
    digest = write(wire, b"data")
    labels = {f"key{number}": "v" * 4000 for number in range(500)}
    change = pb.Info(digest=digest, labels={**ROOT, **labels})
    wire.content.Update(pb.UpdateRequest(info=change, update_mask=FieldMask(paths=["labels"])))
    assert dict(info(wire, digest).labels) == {**ROOT, **labels}
    assert listed(wire, "labels.key499") == [digest]
