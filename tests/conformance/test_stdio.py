"""Where the streams of processes lead: FIFOs whose readers go, files, logging programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from .fixtures import Shop

Code = grpc.StatusCode

LOGGER = """#!{python}
import json, os, signal, stat, sys, threading

signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = sys.argv[sys.argv.index("folder") + 1]
pipes = [fd for fd in range(6) if stat.S_ISFIFO(os.fstat(fd).st_mode)]
more = []
for fd in range(6, 256):
    try:
        os.fstat(fd)
    except OSError:
        continue
    more.append(fd)
with open(folder + "/start.part", "w") as file:
    known = {{"words": sys.argv[1:], "environment": dict(os.environ)}}
    json.dump({{**known, "pipes": pipes, "more": more}}, file)
os.rename(folder + "/start.part", folder + "/start")
os.write(5, b"\\0")
os.close(5)

def copy(fd, name):
    with open(folder + "/" + name, "wb", buffering=0) as file:
        while data := os.read(fd, 65536):
            file.write(data)

threads = [threading.Thread(target=copy, args=pair) for pair in ((3, "out"), (4, "err"))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.fixture
def start(shop: Shop, unique: str) -> Callable[..., int]:
    """Starts a shell's script with streams under the test's id; answers its pid."""

    def run(script: str, **streams: Any) -> int:
        shop.wire.container(unique, ["sh", "-c", script], parent=shop.chain_id)
        shop.wire.create_task(unique, **streams)
        return shop.wire.start(unique)

    return run


class Readers:
    """FIFOs for both outputs, open for reading."""

    def __init__(self, folder: Path) -> None:
        self.paths = {name: str(folder / name) for name in ("stdout", "stderr")}
        for path in self.paths.values():
            os.mkfifo(path)
        self.fds = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in self.paths.values()]

    def leave(self) -> None:
        """The client dies."""
        while self.fds:
            os.close(self.fds.pop())


@pytest.fixture
def readers(tmp_path: Path) -> Any:
    made = Readers(tmp_path)
    yield made
    made.leave()


def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_small_writes_that_nobody_reads_hold_up_nothing(
    shop: Shop, unique: str, start: Callable[..., int], readers: Readers
) -> None:
    """They fit into the FIFO, however many they are: neither the container nor its deletion
    waits for a reader."""
    start("sleep 0.2; for n in $(seq 300); do echo $n; sleep 0.001; done; exit 3", **readers.paths)
    readers.leave()
    assert shop.wire.wait(unique) == 3
    began = time.monotonic()
    shop.wire.delete_task(unique)
    assert time.monotonic() - began < 8, "the delete waited for a reader"


def test_a_file_uri_is_decoded(
    shop: Shop, unique: str, start: Callable[..., int], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/a%20folder/b%2Bc%23.log"
    start("echo out; echo err >&2", stdout=uri, stderr=uri)
    shop.wire.wait(unique)
    shop.wire.delete_task(unique)
    content = (tmp_path / "a folder" / "b+c#.log").read_text()
    assert sorted(content.splitlines()) == ["err", "out"]


def test_a_logging_program_gets_what_containerd_gives(
    shop: Shop, unique: str, start: Callable[..., int], tmp_path: Path
) -> None:
    program = tmp_path / "logger"
    program.write_text(LOGGER.format(python=sys.executable))
    program.chmod(0o700)
    folder = tmp_path / "a folder"
    folder.mkdir()
    uri = f"binary://{program}?folder={str(folder).replace(' ', '%20')}"
    start("echo out; echo err >&2; exit 6", stdout=f"{uri}&alone", stderr=f"{uri}&alone")
    known = json.loads((folder / "start").read_text())
    words = known["words"]
    pairs = sorted(zip(words[::2], words[1::2], strict=True))
    assert pairs == [("alone", ""), ("folder", str(folder))]
    environment = {key: value for key, value in known["environment"].items() if key != "LC_CTYPE"}
    assert environment == {"CONTAINER_ID": unique, "CONTAINER_NAMESPACE": shop.wire.namespace}
    assert known["pipes"] == [3, 4, 5]
    assert known["more"] == []
    until(lambda: (folder / "out").read_text() == "out\n")
    until(lambda: (folder / "err").read_text() == "err\n")
    assert shop.wire.wait(unique) == 6
    shop.wire.delete_task(unique)


def test_a_scheme_that_nobody_knows_is_refused(shop: Shop, unique: str) -> None:
    shop.wire.container(unique, ["true"], parent=shop.chain_id)
    with shop.wire.refused(Code.INVALID_ARGUMENT, "stdout", "gopher", reference=Code.UNKNOWN):
        shop.wire.create_task(unique, stdout="gopher:///x", stderr="gopher:///x")
    shop.wire.create_task(unique)  # and nothing was left
    shop.wire.kill(unique)
    shop.wire.wait(unique)
    shop.wire.delete_task(unique)
