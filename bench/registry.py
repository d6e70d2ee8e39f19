"""A registry on loopback with images to pull, and a slow line to it."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

from bench import layers

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_SECONDS = 20.0
_PIECE = 64 << 10


class Image:
    """An image of gzip layers: its blobs by digest, its manifest, its archive as OCI's layout."""

    def __init__(self, blobs: Sequence[bytes], ids: Sequence[str] = ()) -> None:
        """``ids`` are the diff-ids, where they are known."""
        self.blobs: dict[str, bytes] = {}
        found = [{"mediaType": layers.GZIP, **self._add(blob)} for blob in blobs]
        ids = ids or [_digest(gzip.decompress(blob)) for blob in blobs]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": list(ids)},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self._add(json.dumps(config).encode())},
            "layers": found,
        }
        self.manifest = json.dumps(manifest).encode()

    def _add(self, data: bytes) -> dict[str, object]:
        digest = _digest(data)
        self.blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    def archive(self, path: Path, name: str) -> Path:
        """Writes the archive, with the image under a name."""
        entry = {
            "mediaType": MANIFEST,
            "digest": _digest(self.manifest),
            "size": len(self.manifest),
            "annotations": {"io.containerd.image.name": name},
        }
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        for digest, data in {**self.blobs, _digest(self.manifest): self.manifest}.items():
            files[f"blobs/sha256/{digest[7:]}"] = data
        with tarfile.open(path, "w") as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        return path


@functools.cache
def one_layer() -> Image:
    """210 MiB in 6 800 files."""
    return Image([layers.tree(210, 6800)])


@functools.cache
def twelve_layers() -> Image:
    """Twelve times 20 MiB in 650 files."""
    return Image([layers.tree(20, 650, seed) for seed in range(12)])


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@functools.cache
def _running() -> tuple[subprocess.Popen[bytes], str, str]:
    """One registry for the whole run, with the images in it."""
    binary = shutil.which("docker-registry")
    if binary is None:
        raise RuntimeError("there is no docker-registry on the path")
    folder = tempfile.mkdtemp(prefix="sv-bench-registry-")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": f"{folder}/data"}},
        "http": {"addr": address, "relativeurls": True},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    path = Path(folder) / "config.yml"
    path.write_text(json.dumps(config))
    process = subprocess.Popen(
        [binary, "serve", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    for name, image in (("one", one_layer()), ("twelve", twelve_layers())):
        _upload(address, name, image)
    return process, address, folder


def address() -> str:
    """Where it listens; it is started at the first use, and ended by ``close``."""
    return _running()[1]


_offered: set[str] = set()


def offered(reference: str, make: Callable[[], Image]) -> str:
    """The reference, of an image that is made and uploaded when it is first asked for."""
    if reference not in _offered:
        _upload(address(), reference.partition(":")[0], make())
        _offered.add(reference)
    return reference


def close() -> None:
    """Ends it, if it was started."""
    if _running.cache_info().currsize:
        process, _, folder = _running()
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)
        _running.cache_clear()
        _offered.clear()


def _upload(address: str, name: str, image: Image) -> None:
    connection = http.client.HTTPConnection(address)
    try:
        for digest, data in image.blobs.items():
            where = _asked(connection, "POST", f"/v2/{name}/blobs/uploads/", b"", {}, 202)
            mark = "&" if urlsplit(where).query else "?"
            _asked(connection, "PUT", f"{where}{mark}digest={digest}", data, {}, 201)
        headers = {"Content-Type": MANIFEST}
        _asked(connection, "PUT", f"/v2/{name}/manifests/1", image.manifest, headers, 201)
    finally:
        connection.close()


def _asked(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    data: bytes,
    headers: dict[str, str],
    good: int,
) -> str:
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != good:
        raise RuntimeError(f"docker-registry: {method} {path.partition('?')[0]}: {answer.status}")
    return answer.getheader("Location", "")


@contextmanager
def slow_line(target: str, latency: float = 0.02, rate: int = 50_000_000) -> Iterator[str]:
    """A way to ``target`` on which everything takes ``latency`` seconds and all connections
    together carry ``rate`` bytes a second towards us; its address."""
    ready: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    started = threading.Event()

    async def serve() -> None:
        line = _Line(target, latency, rate)
        server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
        ended = asyncio.Event()
        port = server.sockets[0].getsockname()[1]
        ready.append((f"127.0.0.1:{port}", asyncio.get_running_loop(), ended))
        started.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait(_SECONDS)
    where, loop, ended = ready[0]
    try:
        yield where
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


class _Line:
    def __init__(self, target: str, latency: float, rate: int) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._latency = latency
        self._rate = rate
        self._due = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        there, back = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(
            self._pass(reader, back, 1 << 40), self._pass(there, writer, self._rate)
        )

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: int
    ) -> None:
        """Pieces leave in order, each after its latency and when the line has room."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        loop = asyncio.get_running_loop()

        async def send() -> None:
            try:
                while True:
                    due, data = await queue.get()
                    if not data:
                        break
                    now = loop.time()
                    if rate == self._rate:
                        self._due = max(self._due, now) + len(data) / rate
                        due = max(due, self._due)
                    if due > now:
                        await asyncio.sleep(due - now)
                    sink.write(data)
                    await sink.drain()
            except (ConnectionError, OSError):
                pass
            finally:
                sink.close()

        async def receive() -> None:
            try:
                while data := await source.read(_PIECE):
                    await queue.put((loop.time() + self._latency, data))
            except (ConnectionError, OSError):
                pass
            await queue.put((0.0, b""))

        await asyncio.gather(receive(), send())
