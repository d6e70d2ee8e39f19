"""The content service: the rules of Write, resuming, ranges, labels and codes."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.content.v1 import content_pb2 as pb

from .content.session import ROOT, Session, info, listed, read, status, write
from .daemons import Daemon
from .ocitar import sha256
from .wire import Wire

Code = grpc.StatusCode


def test_write_in_steps(wire: Wire) -> None:
    data = os.urandom(300_000)
    with Session(wire) as session:
        answer = session.send(pb.STAT, ref="r", total=len(data), expected=sha256(data))
        assert (answer.action, answer.offset) == (pb.STAT, 0)
        answer = session.send(pb.WRITE, data=data[:100_000])
        assert (answer.action, answer.offset) == (pb.WRITE, 100_000)
        assert answer.digest == sha256(data[:100_000])
        found = status(wire, "r")
        assert (found.ref, found.offset, found.total) == ("r", 100_000, len(data))
        answer = session.send(pb.WRITE, offset=100_000, data=data[100_000:])
        assert answer.offset == len(data)
        answer = session.send(pb.COMMIT, offset=len(data), labels={**ROOT, "a": "b"})
        assert (answer.action, answer.digest) == (pb.COMMIT, sha256(data))
    assert read(wire, sha256(data)) == data
    stored = info(wire, sha256(data))
    assert (stored.size, dict(stored.labels)) == (len(data), {**ROOT, "a": "b"})
    assert abs(stored.created_at.seconds - time.time()) < 10
    with wire.refused(Code.NOT_FOUND, "r"):
        status(wire, "r")


def test_empty_blob(wire: Wire) -> None:
    write(wire, b"")
    assert info(wire, sha256(b"")).size == 0
    assert read(wire, sha256(b"")) == b""


def test_ingest_is_resumed_by_its_ref(wire: Wire) -> None:
    data = os.urandom(50_000)
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", total=len(data), data=data[:20_000])
        session.end()
    assert [s.ref for s in wire.content.ListStatuses(pb.ListStatusesRequest()).statuses] == ["r"]
    with Session(wire) as session:
        answer = session.send(pb.STAT, ref="r")
        assert (answer.offset, answer.digest) == (20_000, sha256(data[:20_000]))
        session.send(pb.WRITE, offset=20_000, data=data[20_000:])
        session.send(
            pb.COMMIT, offset=len(data), expected=sha256(data), total=len(data), labels=ROOT
        )
    assert read(wire, sha256(data)) == data


def test_cancelled_writer_leaves_what_it_wrote(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"12345")
    assert offset_of(wire, "r") == 5


def offset_of(wire: Wire, ref: str) -> int:
    """The offset of an ingest, as soon as its last writer has let go of it."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with Session(wire) as session:
                return session.send(pb.STAT, ref=ref).offset
        except grpc.RpcError as error:
            assert error.code() is Code.UNAVAILABLE
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_offset_zero_starts_again(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"aaaabbbb")
        assert session.send(pb.WRITE, offset=0, data=b"cc").offset == 2
        assert session.send(pb.WRITE, offset=2, data=b"dd").offset == 4
        session.send(pb.COMMIT, offset=4, expected=sha256(b"ccdd"), labels=ROOT)
    assert read(wire, sha256(b"ccdd")) == b"ccdd"


@pytest.mark.parametrize("offset", [2, 10])
def test_any_other_offset_than_the_next_is_refused(wire: Wire, offset: int) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"1234")
        with wire.refused(Code.OUT_OF_RANGE, "4"):
            session.send(pb.WRITE, offset=offset, data=b"x")
    assert offset_of(wire, "r") == 4


def test_ref_in_use_is_unavailable(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"1")
        with Session(wire) as second, wire.refused(Code.UNAVAILABLE, "r"):
            second.send(pb.STAT, ref="r")
        session.send(pb.COMMIT, offset=1, labels=ROOT)


def test_first_request_needs_a_ref(wire: Wire) -> None:
    with Session(wire) as session, wire.refused(Code.INVALID_ARGUMENT, "ref"):
        session.send(pb.WRITE, data=b"x")


@pytest.mark.parametrize("mistake", ["digest", "size"])
def test_mismatch_on_commit_refuses_the_blob_and_loses_no_other(wire: Wire, mistake: str) -> None:
    other = write(wire, b"other")
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"data")
        wrong: dict[str, Any] = {"total": 5}
        if mistake == "digest":
            wrong = {"expected": sha256(b"x")}
        with wire.refused(Code.FAILED_PRECONDITION):
            session.send(pb.COMMIT, offset=4, **wrong)
    with wire.refused(Code.NOT_FOUND, sha256(b"data")):
        info(wire, sha256(b"data"))
    assert read(wire, other) == b"other"


def test_blob_that_exists_is_refused_at_once(wire: Wire) -> None:
    digest = write(wire, b"data")
    with Session(wire) as session, wire.refused(Code.ALREADY_EXISTS, digest):
        session.send(pb.STAT, ref="other", expected=digest)
    with Session(wire) as session:
        session.send(pb.WRITE, ref="another", data=b"data")
        with wire.refused(Code.ALREADY_EXISTS, digest):
            session.send(pb.COMMIT, offset=4)


def test_blob_of_another_namespace_is_shared_by_its_digest(wire: Wire) -> None:
    digest = write(wire, b"shared data")
    other = wire.scoped(f"{wire.namespace}-b")
    with other.refused(Code.NOT_FOUND, digest):
        info(other, digest)
    with Session(other) as session:
        answer = session.send(pb.STAT, ref="r", expected=digest, total=11)
        assert answer.offset == 11  # nothing is left to write; the commit brings the labels
        session.send(pb.COMMIT, offset=11, expected=digest, total=11, labels={**ROOT, "a": "b"})
    assert read(other, digest) == b"shared data"
    assert dict(info(other, digest).labels) == {**ROOT, "a": "b"}
    assert dict(info(wire, digest).labels) == ROOT
    wire.content.Delete(pb.DeleteContentRequest(digest=digest))
    assert read(other, digest) == b"shared data"
    other.content.Delete(pb.DeleteContentRequest(digest=digest))
    from . import sweep

    sweep.namespace(other)
    other.close()


def test_abort(wire: Wire) -> None:
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", data=b"1")
        session.end()
    wire.content.Abort(pb.AbortRequest(ref="r"))
    with wire.refused(Code.NOT_FOUND, "r"):
        wire.content.Abort(pb.AbortRequest(ref="r"))
    assert not wire.content.ListStatuses(pb.ListStatusesRequest()).statuses


def test_statuses_are_filtered(wire: Wire) -> None:
    for ref in ("one", "two", "three"):
        with Session(wire) as session:
            session.send(pb.WRITE, ref=ref, data=b"1")
            session.end()
    request = pb.ListStatusesRequest(filters=["ref~=^t"])
    assert sorted(s.ref for s in wire.content.ListStatuses(request).statuses) == ["three", "two"]


def test_read_ranges(wire: Wire) -> None:
    data = os.urandom(2_500_000)
    digest = write(wire, data)
    for offset, size in ((0, 0), (0, 10), (1_000_000, 0), (1_048_570, 20), (2_499_999, 1)):
        end = offset + size if size else len(data)
        assert read(wire, digest, offset, size) == data[offset:end], (offset, size)
    assert read(wire, digest, len(data)) == b""
    with wire.refused(Code.OUT_OF_RANGE):
        read(wire, digest, len(data) + 1)
    if wire.ours:  # 1.6 refuses a size beyond the end, newer ones read to the end
        assert read(wire, digest, 10, len(data)) == data[10:]
    with wire.refused(Code.NOT_FOUND, sha256(b"absent")):
        read(wire, sha256(b"absent"))


def test_labels_by_mask(wire: Wire) -> None:
    digest = write(wire, b"data")
    change = pb.Info(digest=digest, labels={"a": "1", "b": "2"})
    request = pb.UpdateRequest(info=change, update_mask=FieldMask(paths=["labels.a"]))
    updated = wire.content.Update(request).info
    assert dict(updated.labels) == {**ROOT, "a": "1"}
    assert updated.size == 4
    request.update_mask.paths[:] = ["labels"]
    assert dict(wire.content.Update(request).info.labels) == {"a": "1", "b": "2"}
    change.labels["a"] = ""
    request = pb.UpdateRequest(info=change, update_mask=FieldMask(paths=["labels.a"]))
    assert dict(wire.content.Update(request).info.labels) == {"b": "2"}
    request.update_mask.paths[:] = ["size"]
    with wire.refused(Code.INVALID_ARGUMENT, "size"):
        wire.content.Update(request)
    absent = pb.UpdateRequest(info=pb.Info(digest=sha256(b"absent"), labels={"a": "1"}))
    with wire.refused(Code.NOT_FOUND, sha256(b"absent")):
        wire.content.Update(absent)


def test_list_by_filters(wire: Wire) -> None:
    digests = sorted(write(wire, data) for data in (b"one", b"two", b"three"))
    change = pb.Info(digest=digests[1], labels={"color": "red"})
    wire.content.Update(
        pb.UpdateRequest(info=change, update_mask=FieldMask(paths=["labels.color"]))
    )
    assert listed(wire) == digests
    assert listed(wire, "labels.color==red") == [digests[1]]
    assert listed(wire, f"digest=={digests[0]}", "labels.color") == digests[:2]
    assert listed(wire, "labels.color==blue") == []


def test_delete(wire: Wire) -> None:
    digest = write(wire, b"data")
    wire.content.Delete(pb.DeleteContentRequest(digest=digest))
    for call in (
        lambda: info(wire, digest),
        lambda: read(wire, digest),
        lambda: wire.content.Delete(pb.DeleteContentRequest(digest=digest)),
    ):
        with wire.refused(Code.NOT_FOUND, digest):
            call()
    write(wire, b"data")


def test_other_algorithm(wire: Wire) -> None:
    """Containerd 1.6 knows sha256 alone; newer ones keep a blob under the digest asked for."""
    digest = "sha512:" + hashlib.sha512(b"data").hexdigest()
    request = pb.WriteContentRequest(
        action=pb.COMMIT, ref="r", data=b"data", expected=digest, labels=ROOT
    )
    if wire.ours:
        list(wire.content.Write(iter([request])))
        assert read(wire, digest) == b"data"
    else:
        with wire.refused(Code.FAILED_PRECONDITION):
            list(wire.content.Write(iter([request])))


def test_ingest_and_blobs_outlive_the_daemon(own_daemon: Daemon) -> None:
    data = os.urandom(1_500_000)
    wire = Wire(own_daemon.address, "outlive", ours=own_daemon.ours)
    kept = write(wire, b"kept")
    with Session(wire) as session:
        session.send(pb.WRITE, ref="r", total=len(data), data=data[:700_000])
        own_daemon.kill()
    wire.close()
    own_daemon.start()
    wire = Wire(own_daemon.address, "outlive", ours=own_daemon.ours)
    assert read(wire, kept) == b"kept"
    with Session(wire) as session:
        at = session.send(pb.STAT, ref="r").offset
        assert at == 700_000
        session.send(pb.WRITE, offset=at, data=data[at:])
        session.send(pb.COMMIT, offset=len(data), expected=sha256(data), labels=ROOT)
    assert read(wire, sha256(data)) == data
    wire.close()
