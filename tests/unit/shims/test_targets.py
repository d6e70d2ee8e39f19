"""What the words of a client for its streams mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shims.targets import kind, open_target, pairs, parse
from supervisord.contracts.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/fifo", ("fifo", "/run/fifo", "")),
        ("/run/a%20b?c#d", ("fifo", "/run/a%20b?c#d", "")),
        ("/run/a:b", ("fifo", "/run/a:b", "")),
        ("fifo:///run/a%20b", ("fifo", "/run/a b", "")),
        ("file:///var/log/a%20b.log", ("file", "/var/log/a b.log", "")),
        ("file:/var/log/x", ("file", "/var/log/x", "")),
        ("cri:///var/log/0.log?max-line=5", ("cri", "/var/log/0.log", "max-line=5")),
        ("binary:///bin/log%23?a=b%26c", ("binary", "/bin/log#", "a=b%26c")),
        ("binary-v2:///bin/log", ("binary-v2", "/bin/log", "")),
    ],
)
def test_paths_and_uris(text: str, expected: tuple[str, str, str]) -> None:
    assert parse(text, "stdout") == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("relative", "must have an absolute path"),
        ("./relative", "must have an absolute path"),
        ("file://relative/path", "must have an absolute path"),
        ("file:relative", "must have an absolute path"),
        ("file://", "must have an absolute path"),
        ("cri://~/x", "must have an absolute path"),
        ("gopher:///x", "unknown STDIO scheme 'gopher'"),
        ("FILE:///x", "unknown STDIO scheme 'FILE'"),
        ("://x", "unknown STDIO scheme ''"),
        ("file:///a#b", "fragment"),
        ("file:///a%00b", "zero byte"),
        ("/a\0b", "zero byte"),
    ],
)
def test_what_is_refused_says_which_field_and_why(text: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^stderr: .*{rule}"):
        parse(text, "stderr")


def test_queries() -> None:
    assert pairs("") == []
    assert pairs("a=b&c&d=&a=x+y%2B&&=e") == [
        ("a", "b"),
        ("c", ""),
        ("d", ""),
        ("a", "x y+"),
        ("", "e"),
    ]


def test_a_target_that_cannot_be_opened_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("a" * 300)):
        with pytest.raises(InvalidArgument, match=r"^stdout: opening "):
            open_target(str(path), "stdout")
    (tmp_path / "file").touch()
    assert kind(str(tmp_path / "absent"), "stdout") == 0
    with pytest.raises(InvalidArgument, match=r"^stdout: opening .*Not a directory"):
        kind(str(tmp_path / "file" / "below"), "stdout")


def test_a_fifo_waits_for_nobody_and_keeps_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    opened = open_target(str(path), "stdout")
    os.write(opened.fd, b"early")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(opened.keeper)
    os.close(opened.fd)
    assert os.read(reader, 100) == b"early"
    assert os.read(reader, 100) == b""
    os.close(reader)
