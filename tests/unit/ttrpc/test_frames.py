"""The frame codec: whole, byte by byte, glued together, oversized, random."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.contracts.errors import ResourceExhausted
from supervisord.ttrpc.frames import DATA, MAX_DATA, REQUEST, RESPONSE, Frame, FrameReader, encode

FRAMES = st.lists(
    st.builds(
        Frame,
        stream_id=st.integers(0, 2**32 - 1),
        type=st.sampled_from([REQUEST, RESPONSE, DATA, 77]),
        flags=st.integers(0, 255),
        data=st.binary(max_size=300),
        oversized=st.just(0),
    ),
    max_size=8,
)


def wire(frames: list[Frame]) -> bytes:
    return b"".join(encode(f.stream_id, f.type, f.flags, f.data) for f in frames)


def test_the_header_is_ten_bytes_in_network_order() -> None:
    assert encode(5, REQUEST, 2, b"abc") == b"\0\0\0\x03\0\0\0\x05\x01\x02abc"


def test_byte_by_byte() -> None:
    frames = [
        Frame(1, REQUEST, 0, b"one"),
        Frame(3, DATA, 5, b""),
        Frame(5, RESPONSE, 0, b"x" * 99),
    ]
    reader = FrameReader()
    got = [frame for byte in wire(frames) for frame in reader.feed(bytes([byte]))]
    assert got == frames
    assert reader.pending == 0


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1), st.binary(max_size=9))
def test_any_cut_gives_the_same_frames(frames: list[Frame], cuts: list[int], tail: bytes) -> None:
    data = wire(frames) + tail
    reader = FrameReader()
    got: list[Frame] = []
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        got += reader.feed(memoryview(data)[at : at + size])
        at, turn = at + size, turn + 1
    assert got == frames
    assert reader.pending == len(tail)


@given(st.binary(max_size=400))
def test_noise_never_fails_and_is_never_hoarded(noise: bytes) -> None:
    reader = FrameReader()
    for byte in noise:
        reader.feed(bytes([byte]))
    assert reader.pending <= MAX_DATA + 10


def test_oversized_data_is_dropped_and_reading_goes_on() -> None:
    length = MAX_DATA + 1
    reader = FrameReader()
    got = reader.feed(struct.pack(">IIBB", length, 9, REQUEST, 0))
    for _ in range(length // 65536):
        got += reader.feed(b"\0" * 65536)
        assert reader.pending == 0
    got += reader.feed(b"\0" * (length % 65536) + encode(11, REQUEST, 0, b"ok"))
    assert got == [Frame(9, REQUEST, 0, b"", length), Frame(11, REQUEST, 0, b"ok")]


def test_the_largest_frame_passes_and_one_more_byte_does_not() -> None:
    data = bytes(MAX_DATA)
    assert FrameReader().feed(encode(1, DATA, 0, data)) == [Frame(1, DATA, 0, data)]
    with pytest.raises(ResourceExhausted, match="4194305 exceed maximum message size of 4194304"):
        encode(1, DATA, 0, data + b"\0")
