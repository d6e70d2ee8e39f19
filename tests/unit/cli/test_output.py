"""Tables and JSON as people and scripts see them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from supervisord.cli import output

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RECORDS = [
    {"name": "a", "size": 1, "labels": {"y": "2", "x": "1"}, "when": WHEN, "hidden": b"\xff"},
    {"name": "a-long-name", "size": 0, "labels": {}, "when": None, "hidden": b""},
]


def test_a_table_is_aligned_and_has_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [("NAME", "name"), ("SIZE", "size"), ("LABELS", "labels")]
    output.listing(RECORDS, columns)
    assert capsys.readouterr().out == (
        "NAME         SIZE  LABELS\na            1     x=1,y=2\na-long-name  0     -\n"
    )


def test_json_has_what_the_table_hides(capsys: pytest.CaptureFixture[str]) -> None:
    output.listing(RECORDS, [("NAME", "name")], format="json")
    found = json.loads(capsys.readouterr().out)
    assert found[0]["when"] == "2026-01-02T03:04:05.678901Z"
    assert found[0]["labels"] == {"y": "2", "x": "1"}
    assert found[1]["when"] is None


def test_an_empty_listing_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.listing([], [("NAME", "name")], format="json")
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (9 << 40, "9.0 TiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert output.human_bytes(count) == text


def test_an_unset_time_is_none() -> None:
    assert output.moment(Timestamp()) is None
    stamp = Timestamp(seconds=1767323045, nanos=678901999)
    assert output.moment(stamp) == WHEN


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds"), (1, "1 second"), (119, "119 seconds"), (120, "2 minutes"),
     (7200, "2 hours"), (200000, "2 days"), (-5, "0 seconds")],
)  # fmt: skip
def test_ages(seconds: int, text: str) -> None:
    assert output.age(datetime.now(UTC) - timedelta(seconds=seconds)) == text
