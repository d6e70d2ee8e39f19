"""Garbage collections, one after the other, beside clients that import, unpack, run and remove
images which share all their layers: whatever a client was promised stays until it lets go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ocitar
from .ctr import Ctr

_CLIENTS, _TURNS = 3, 3


def test_nothing_is_taken_from_under_a_client(
    ctr: Ctr, image: ocitar.Image, image_folder: Path
) -> None:
    done = threading.Event()
    collections = 0

    def collect() -> None:
        nonlocal collections
        while not done.is_set():
            ctr("leases", "rm", "--sync", ctr("leases", "create").out.strip())
            collections += 1

    def client(number: int) -> None:
        name = f"docker.io/test/beside:{number}"
        archive = image.write(image_folder / f"{ctr.namespace}-{number}.tar", name)
        for turn in range(_TURNS):
            ctr("i", "import", str(archive), timeout=120)
            (row,) = ctr("i", "check", f"name=={name}").rows()
            assert (row[3], row[-1]) == ("complete", "true")
            ran = ctr("run", "--rm", name, f"beside-{number}-{turn}", "echo", "here", timeout=120)
            assert ran.out == "here\n"
            ctr("i", "rm", name)
        archive.unlink()

    with ThreadPoolExecutor(_CLIENTS + 1) as pool:
        collecting = pool.submit(collect)
        try:
            for each in [pool.submit(client, number) for number in range(_CLIENTS)]:
                each.result()
        finally:
            done.set()
        collecting.result()
    assert collections
    ctr("leases", "rm", "--sync", ctr("leases", "create").out.strip())
    assert ctr("content", "ls", "-q").out == ""
    assert ctr("snapshots", "ls").rows() == []
