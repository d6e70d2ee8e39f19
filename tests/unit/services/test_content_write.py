"""What a Write's answers promise, on a store that keeps account of what it is asked."""

from __future__ import annotations

from typing import Any, cast

import pytest

from protos.containerd.services.content.v1 import content_pb2 as pb
from supervisord.contracts.content import ContentStore, Info, Status
from supervisord.contracts.errors import NotFound, ResourceExhausted
from supervisord.contracts.scope import Scope
from supervisord.services.content_write import WriteSession


class Account:
    """A store and its only writer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = Status("r")
        self.full = False

    async def writer(self, scope: Scope, ref: str, **_: Any) -> Account:
        return self

    async def info(self, scope: Scope, digest: str) -> Info:
        raise NotFound(digest)

    def digest(self) -> str:
        return "sha256:" + "0" * 64

    async def write(self, data: bytes) -> None:
        self.asked.append("write")
        self.status = Status("r", self.status.offset + len(data))

    async def settle(self) -> None:
        self.asked.append("settle")
        if self.full:
            raise ResourceExhausted("full")

    async def commit(self, size: int, expected: str, labels: dict[str, str]) -> Info:
        self.asked.append("commit")
        return Info(self.digest(), size)

    async def close(self) -> None:
        self.asked.append("close")


async def test_an_answer_comes_when_the_bytes_are_in_the_file() -> None:
    account = Account()
    session = WriteSession(cast("ContentStore", account), Scope("n"))
    answer = await session.handle(pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"123"))
    assert answer.offset == 3
    assert account.asked == ["write", "settle"]
    await session.handle(pb.WriteContentRequest(action=pb.COMMIT, offset=3, data=b"45"))
    await session.close()
    assert account.asked[2:] == ["write", "commit", "close"], "a commit waits itself"
    assert session.moved == 5


async def test_a_full_disk_is_told_with_the_piece_that_did_not_fit() -> None:
    account = Account()
    account.full = True
    session = WriteSession(cast("ContentStore", account), Scope("n"))
    with pytest.raises(ResourceExhausted):
        await session.handle(pb.WriteContentRequest(action=pb.WRITE, ref="r", data=b"123"))
    await session.close()
