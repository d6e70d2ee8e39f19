"""The last lines of a file, entries shown as what was said, and files that are moved."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisord.cli.nouns import logs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.text("ab", max_size=5), max_size=9),
    st.booleans(),
    st.integers(0, 12),
    st.integers(1, 9),
)
def test_tail(tmp_path: Path, lines: list[str], ended: bool, count: int, block: int) -> None:
    """Against the obvious way, with blocks so small that every border is met."""
    content = "\n".join(lines) + ("\n" if ended and lines else "")
    file = tmp_path / "log"
    file.write_text(content)
    before, logs._BLOCK = logs._BLOCK, block
    try:
        with file.open("rb") as opened:
            offset = logs.tail_offset(opened.fileno(), count)
    finally:
        logs._BLOCK = before
    expected = content.splitlines(keepends=True)
    assert content[offset:] == "".join(
        expected[len(expected) - count :] if count < len(expected) else expected
    )


ENTRIES = (
    b"2026-01-31T12:00:00.123456789Z stdout P 0123\n"
    b"2026-01-31T12:00:00.123456789Z stderr F bad  spaces \n"
    b"2026-01-31T12:00:00.123456789Z stdout F \xff\n"
    b"2026-01-31T12:00:00.123456789Z stdout F \n"
    b"2026-01-31T12:00\n"
    b"2026-01-31T12:00:00.123456789Z stdout F half"
)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_entries(capfdbinary: pytest.CaptureFixture[bytes], size: int) -> None:
    entries = logs.Entries()
    for at in range(0, len(ENTRIES), size):
        entries.show(ENTRIES[at : at + size])
    sys.stdout.flush()
    sys.stderr.flush()
    shown = capfdbinary.readouterr()
    assert shown.out == b"0123\xff\n\n2026-01-31T12:00\n"
    assert shown.err == b"bad  spaces \n"


def test_a_moved_file_has_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    with path.open("rb") as file:
        assert logs._successor(path, file) is None
        path.rename(tmp_path / "log.1")
        assert logs._successor(path, file) is None
        path.write_text("new")
        new = logs._successor(path, file)
        assert new is not None
        with new:
            assert new.read() == b"new"
