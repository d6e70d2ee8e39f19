"""The last lines of a file, found from its end."""

from __future__ import annotations

from pathlib import Path

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
