"""Read's messages, put together by hand, against the ones that protobuf reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protos.containerd.services.content.v1 import content_pb2 as pb
from supervisord.content.reader import BlobReader
from supervisord.contracts.errors import DataLoss, OutOfRange
from supervisord.services.content_read import CHUNK, ReadSession, message_head

EDGES = [0, 1, 127, 128, 16383, 16384, 2097151, 2097152, (1 << 35) - 1, 1 << 35, (1 << 63) - 1]


@pytest.mark.parametrize("offset", EDGES)
@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_a_head_is_protobuf(offset: int, size: int) -> None:
    data = os.urandom(size)
    whole = pb.ReadContentResponse(offset=offset, data=data).SerializeToString()
    assert message_head(offset, size) + data == whole


async def test_a_range_is_cut_into_chunks(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 5)
    (tmp_path / "blob").write_bytes(data)
    reader = BlobReader(tmp_path / "blob")
    for offset, size in ((0, 0), (3, CHUNK), (7, 2 * CHUNK), (len(data), 0), (-1, -1), (9, 1)):
        request = pb.ReadContentRequest(digest="d", offset=offset, size=size)
        session = ReadSession(reader, request)
        answers = [pb.ReadContentResponse.FromString(await session.chunk())]
        while session.left:
            answers.append(pb.ReadContentResponse.FromString(await session.chunk()))
        start = max(offset, 0)
        wanted = data[start:][: size if size > 0 else None]
        assert b"".join(answer.data for answer in answers) == wanted
        assert [answer.offset for answer in answers] == [at * CHUNK for at in range(len(answers))]
        assert session.done == len(wanted)
    with pytest.raises(OutOfRange, match=str(len(data))):
        ReadSession(reader, pb.ReadContentRequest(offset=len(data) + 1))
    reader.close()


async def test_a_blob_that_loses_its_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(100))
    reader = BlobReader(path)
    path.write_bytes(bytes(99))
    with pytest.raises(DataLoss, match="lost its end"):
        await ReadSession(reader, pb.ReadContentRequest(digest="d")).chunk()
    reader.close()
