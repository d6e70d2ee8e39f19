"""What a daemon weighs while it pulls 2 GiB, and how long others wait for an answer meanwhile."""

from __future__ import annotations

import hashlib
import io
import random
import socket
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from isal import igzip

from bench import figures, registry
from bench.figures import Figure
from bench.images import Runner
from bench.prober import probing

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MEBIBYTES = 2048
_FILE = 4 << 20


def pulls(address: str) -> Iterator[tuple[Figure, float]]:
    """An image of one layer, and one of sixteen, both of 2 GiB."""
    run = Runner(address)
    pid = _server_of(address)
    near = registry.address()
    waits: list[float] = []
    for figure, name, layers in (
        (figures.WEIGHT_ONE, "huge", 1),
        (figures.WEIGHT_MANY, "many", 16),
    ):
        reference = registry.offered(f"{name}:1", lambda n=layers: _image(n))  # type: ignore[misc]
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak from now on (proc(5))
        with probing(address) as took:
            run.timed("images", "pull", "--plain-http", *run.quiet, f"{near}/{reference}")
        yield figure, _peak(pid) / 2**20
        waits += took
        run.remove(f"{near}/{reference}")
    yield figures.WEIGHT_WAIT, max(waits)
    yield figures.WEIGHT_WAIT_P99, figures.quantile(waits, 0.99)


def _server_of(address: str) -> int:
    """The process that listens on a socket (SO_PEERCRED, unix(7))."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(address)
        found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[0])


def _peak(pid: int) -> int:
    """The most resident memory since it was cleared, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no VmHWM")


def _image(layers: int) -> registry.Image:
    """2 GiB in so many layers, half of it noise."""
    made = [_layer((_MEBIBYTES << 20) // layers, seed) for seed in range(layers)]
    return registry.Image([blob for blob, _ in made], [diff_id for _, diff_id in made])


def _layer(size: int, seed: int) -> tuple[bytes, str]:
    """A gzip layer of large files, and its diff-id; the same bytes every time."""
    source = random.Random(seed)  # noqa: S311 - the same bytes every time
    noise = source.randbytes(_FILE // 2)
    out = io.BytesIO()
    with igzip.IGzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed:  # type: ignore[no-untyped-call]
        hashing = _Hashing(packed)
        with tarfile.open(fileobj=hashing, mode="w|") as tar:
            for number in range(size // _FILE):
                entry = tarfile.TarInfo(f"f{seed}-{number}")
                entry.size = _FILE
                shift = source.randrange(len(noise))
                data = noise[shift:] + noise[:shift] + bytes(_FILE // 2)
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue(), f"sha256:{hashing.hash.hexdigest()}"


class _Hashing(io.RawIOBase):
    def __init__(self, sink: io.BufferedIOBase) -> None:
        self._sink = sink
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self.hash.update(data)
        return self._sink.write(data)
