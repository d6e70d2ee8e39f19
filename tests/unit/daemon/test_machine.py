"""Locks, notifications and log lines."""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
from pathlib import Path

import pytest

from supervisord.daemon.lock import RootLock, RootTaken
from supervisord.daemon.logs import JsonFormatter, TextFormatter
from supervisord.daemon.main import main
from supervisord.daemon.notify import sd_notify, set_oom_score


def test_one_lock_per_root_and_the_refusal_names_the_holder(tmp_path: Path) -> None:
    first, second = RootLock(str(tmp_path)), RootLock(str(tmp_path))
    first.take()
    with pytest.raises(RootTaken, match=rf"\(pid {os.getpid()}\) runs on root {tmp_path}"):
        second.take()
    first.drop()
    second.take()
    second.drop()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        RootLock(str(tmp_path)).take()
    assert target.read_text() == "data"


def test_the_service_manager_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(tempfile.mkdtemp()) / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert sd_notify("READY=1")
        assert manager.recv(64) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    assert not sd_notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sd_notify("READY=1")


def test_an_oom_score_out_of_range_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    before = Path("/proc/self/oom_score_adj").read_text()
    set_oom_score(5000)
    assert "oom score not changed" in caplog.text
    assert Path("/proc/self/oom_score_adj").read_text() == before


def _record(**extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "supervisord.daemon.x", "msg": "it happened", "levelno": logging.WARNING}
    )
    vars(record).update(extra)
    return record


def test_text_lines_are_logfmt() -> None:
    line = TextFormatter().format(_record(path="/a b", id="web", empty="", text="a\nb"))
    assert line.startswith("time=")
    assert ' level=warning msg="it happened" room=daemon.x' in line
    assert line.endswith(r'path="/a b" id=web empty="" text="a\nb"')


def test_json_lines_are_json_with_the_error() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = _record(id="web", exc_info=(ValueError, error, error.__traceback__))
    fields = json.loads(JsonFormatter().format(record))
    assert (fields["level"], fields["msg"], fields["id"]) == ("warning", "it happened", "web")
    assert fields["error"] == "broken"
    assert "ValueError: broken" in fields["traceback"]


def test_a_config_mistake_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("rooot = 1")
    assert main(["--config", str(file)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"supervisord: {file}: unknown key rooot; the nearest known one is root\n"


def test_the_dump_shows_flags_before_and_after_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--root", "/one", "config", "dump", "--state", "/two"]) == 0
    printed = capsys.readouterr().out
    assert 'root = "/one"' in printed
    assert 'state = "/two"' in printed


def test_the_default_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "default"]) == 0
    assert "# Unix socket for clients.\naddress = " in capsys.readouterr().out
