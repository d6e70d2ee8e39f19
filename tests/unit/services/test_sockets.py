"""Taking a socket's path: stale ones go, live ones and other files stay."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument
from supervisord.services.sockets import claim, listening, own, release


@pytest.fixture
def path() -> str:
    return str(Path(tempfile.mkdtemp()) / "deep" / "s.sock")


def test_the_folder_is_made_and_the_socket_restricted(path: str) -> None:
    server, identity = listening(path, 0, 0)
    with server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        release(path, identity)
    assert not os.path.exists(path)


def test_a_stale_socket_is_dropped(path: str) -> None:
    server, _ = listening(path, 0, 0)
    server.close()
    assert os.path.exists(path)
    claim(path)
    assert not os.path.exists(path)


def test_a_live_socket_is_not_taken(path: str) -> None:
    server, identity = listening(path, 0, 0)
    with server:
        with pytest.raises(FailedPrecondition, match="another process serves"):
            claim(path)
        assert os.path.exists(path)
        release(path, identity)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays(path: str, kind: str) -> None:
    Path(path).parent.mkdir()
    if kind == "file":
        Path(path).write_text("data")
    elif kind == "folder":
        Path(path).mkdir()
    else:
        Path(path).symlink_to("elsewhere")
    with pytest.raises(FailedPrecondition, match="is not a socket"):
        claim(path)
    assert os.path.lexists(path)


def test_somebody_elses_socket_is_not_released(path: str) -> None:
    server, identity = listening(path, 0, 0)
    server.close()
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        assert own(path, 0, 0) != identity
        release(path, identity)
        assert os.path.exists(path)


@pytest.mark.parametrize(("bad", "rule"), [("s.sock", "absolute"), ("/" + "x" * 107, "107 bytes")])
def test_paths_that_cannot_be_bound(bad: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        claim(bad)
