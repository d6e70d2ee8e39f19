"""The rules of the Write stream and of Read's messages that only the wire shows."""

from __future__ import annotations

import hashlib
import os

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2 as pb
from protos.containerd.services.leases.v1 import leases_pb2

from .content.session import ROOT, Session, info, listed, read, refs, status, write
from .ocitar import sha256
from .wire import Wire

Code = grpc.StatusCode
MESSAGE = 16 << 20


def test_stream_without_a_message(wire: Wire) -> None:
    with wire.refused(Code.INVALID_ARGUMENT, "ref", reference=Code.UNKNOWN):
        list(wire.content.Write(iter(())))


def test_stream_that_ends_without_commit_keeps_the_ingest(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12345", total=9)
        session.end()  # and not with an error
    found = status(wire, "r")
    assert (found.ref, found.offset, found.total, found.expected) == ("r", 5, 9, "")
    with Session(wire) as session:
        assert session.send(pb.STAT, ref="r").offset == 5


def test_what_a_stat_tells(wire: Wire) -> None:
    with Session(wire) as session:
        first = session.send(pb.STAT, ref="r", total=5)
        assert (first.action, first.offset, first.total) == (pb.STAT, 0, 5)
        assert first.digest == sha256(b"")
        session.send(pb.WRITE, data=b"123")
        later = session.send(pb.STAT, total=7, offset=99, data=b"ignored")
        assert (later.offset, later.total, later.digest) == (3, 7, sha256(b"123"))
        assert later.started_at == first.started_at
        assert later.updated_at.ToNanoseconds() > first.updated_at.ToNanoseconds()


def test_one_commit_is_a_whole_write(wire: Wire) -> None:
    request = pb.WriteContentRequest(action=pb.COMMIT, ref="r", data=b"all", labels=ROOT)
    answer = next(iter(wire.content.Write(iter([request]))))
    assert (answer.action, answer.offset, answer.digest) == (pb.COMMIT, 3, sha256(b"all"))
    assert refs(wire) == []


def test_nothing_is_read_after_a_commit(wire: Wire) -> None:
    commit = pb.WriteContentRequest(action=pb.COMMIT, ref="r", data=b"all", labels=ROOT)
    more = pb.WriteContentRequest(action=pb.WRITE, offset=3, data=b"more")
    answers = list(wire.content.Write(iter([commit, more, more])))
    assert {answer.digest for answer in answers} == {sha256(b"all")}
    assert read(wire, sha256(b"all")) == b"all"


def test_expectations_last_until_they_are_replaced(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.STAT, ref="r", total=4, expected=sha256(b"1234"))
        session.send(pb.WRITE, data=b"12345")
        with wire.refused(Code.FAILED_PRECONDITION):
            session.send(pb.COMMIT, offset=5, labels=ROOT)  # neither size nor digest
    with Session(wire) as session:
        session.send(pb.STAT, ref="r", expected=sha256(b"1234"))
        session.send(pb.WRITE, offset=5, data=b"6", total=6, expected=sha256(b"123456"))
        answer = session.send(pb.COMMIT, offset=6, labels=ROOT)
        assert answer.digest == sha256(b"123456")


def test_labels_come_with_the_commit_alone(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12", labels={"early": "1"})
        session.send(pb.COMMIT, offset=2, labels={**ROOT, "late": "1"})
    assert dict(info(wire, sha256(b"12")).labels) == {**ROOT, "late": "1"}


@pytest.mark.parametrize("action", [pb.STAT, pb.WRITE, pb.COMMIT])
def test_expected_that_exists_ends_the_stream(wire: Wire, action: int) -> None:
    digest = write(wire, b"here")
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"other")
        with wire.refused(Code.ALREADY_EXISTS, digest):
            session.send(action, offset=5, data=b"x", expected=digest)
    assert refs(wire) == [], "the ingest is dropped"


def test_ingest_is_untouched_by_an_open_that_finds_the_blob(wire: Wire) -> None:
    digest = write(wire, b"here")
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12345")
        session.end()
    with Session(wire) as session, wire.refused(Code.ALREADY_EXISTS, digest):
        session.send(pb.STAT, ref="r", expected=digest)
    assert status(wire, "r").offset == 5


@pytest.mark.only("supervisord", reason="Debian's containerd keeps sha256 alone")
@pytest.mark.parametrize("early", [True, False])
def test_the_commit_answers_the_digest_it_was_asked_for(wire: Wire, early: bool) -> None:
    digest = "sha512:" + hashlib.sha512(b"data").hexdigest()
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"data", expected=digest if early else "")
        answer = session.send(pb.COMMIT, offset=4, expected="" if early else digest, labels=ROOT)
    assert answer.digest == digest
    assert listed(wire) == [digest]


def test_a_message_too_large_leaves_what_was_written(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12345")
        with wire.refused(Code.RESOURCE_EXHAUSTED):
            session.send(pb.WRITE, offset=5, data=bytes(MESSAGE))
    assert status(wire, "r").offset == 5


def test_read_messages(wire: Wire) -> None:
    """A client of any make takes 4 MiB; offsets count from the first byte that is sent."""
    data = os.urandom((5 << 20) + 123)
    digest = write(wire, data)
    for offset, size in ((0, 0), (1000, 3 << 20), (len(data) - 5, 0)):
        answers = list(
            wire.content.Read(pb.ReadContentRequest(digest=digest, offset=offset, size=size))
        )
        assert max(len(answer.data) for answer in answers) <= 1 << 20
        at = 0
        for answer in answers:
            assert answer.offset == at
            assert answer.data == data[offset + at : offset + at + len(answer.data)]
            at += len(answer.data)
        assert at == (size or len(data) - offset)


def test_a_blob_that_is_deleted_under_a_reader(wire: Wire) -> None:
    data = os.urandom(24 << 20)  # more than is under way at a time
    with Session(wire) as session:
        half = len(data) // 2
        session.send(pb.WRITE, ref="r", data=data[:half])
        session.send(pb.COMMIT, offset=half, data=data[half:], labels=ROOT)
    stream = wire.content.Read(pb.ReadContentRequest(digest=sha256(data)))
    got = next(stream).data
    wire.content.Delete(pb.DeleteContentRequest(digest=sha256(data)))
    assert got + b"".join(answer.data for answer in stream) == data


def test_list_comes_in_batches(wire: Wire) -> None:
    made = sorted(write(wire, b"%d" % number) for number in range(101))
    batches = [
        [i.digest for i in answer.info] for answer in wire.content.List(pb.ListContentRequest())
    ]
    assert [len(batch) for batch in batches] == [100, 1]
    assert [digest for batch in batches for digest in batch] == made


def test_leases_hold_what_their_calls_touch(wire: Wire, unique: str) -> None:
    present = write(wire, b"here")
    wire.leases.Create(leases_pb2.CreateRequest(id=unique))
    leased = wire.scoped(lease=unique)

    def held() -> set[tuple[str, str]]:
        request = leases_pb2.ListResourcesRequest(id=unique)
        return {(r.type, r.id) for r in wire.leases.ListResources(request).resources}

    try:
        with Session(leased) as session, wire.refused(Code.ALREADY_EXISTS, present):
            session.send(pb.STAT, ref="one", expected=present)
        assert held() == {("content", present)}
        with Session(leased) as session:
            session.send(pb.WRITE, ref="two", data=b"more")
            assert held() == {("content", present), ("ingests", "two")}
            session.send(pb.COMMIT, offset=4)
        assert held() == {("content", present), ("content", sha256(b"more"))}
        absent = wire.scoped(lease="nosuchlease")
        with Session(absent) as session, wire.refused(Code.NOT_FOUND, "nosuchlease"):
            session.send(pb.STAT, ref="three")
        absent.close()
        assert refs(wire) == []
    finally:
        leased.close()
