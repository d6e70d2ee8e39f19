"""A heap of images as pulls leave it, for the collection of garbage: built, and thinned out.

Each image refers to blobs of its own and to a chain of snapshots, by the labels that clients set.
One image of a hundred is one percent of the heap.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from bench.client import META, SNAPSHOTTER, Client, unique
from protos.containerd.services.content.v1 import content_pb2 as content
from protos.containerd.services.images.v1 import images_pb2 as images
from protos.containerd.services.leases.v1 import leases_pb2 as leases
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots

_REF = "containerd.io/gc.ref"
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Size:
    """So many images, each with so many blobs (one of them its manifest) and snapshots."""

    images: int = 100
    blobs: int = 100
    snapshots: int = 10


class Heap:
    """``names`` are the images that are left; what is added is removed by ``clear``."""

    def __init__(self, client: Client, size: Size) -> None:
        self._client = client
        self._size = size
        self._prefix = unique("heap-")
        self.names: list[str] = []
        self.digests: list[str] = []

    def fill(self) -> None:
        """Builds all images under a lease that then goes."""
        lease = unique("lease-")
        self._client.leases.Create(leases.CreateRequest(id=lease), metadata=META)
        meta = (*META, ("containerd-lease", lease))
        names = [f"{self._prefix}/{number}:latest" for number in range(self._size.images)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.digests = list(pool.map(lambda name: self._image(name, meta), names))
        self.names = names
        self._client.leases.Delete(leases.DeleteRequest(id=lease, sync=True), metadata=META)

    def _image(self, name: str, meta: tuple[tuple[str, str], ...]) -> str:
        """Answers the digest of its manifest."""
        layers = [
            self._blob(f"{name} {number}".encode(), meta) for number in range(self._size.blobs - 1)
        ]
        labels = {f"{_REF}.content.l.{number}": layer for number, layer in enumerate(layers)}
        parent = ""
        for number in range(self._size.snapshots):
            parent = self._snapshot(f"{name}/{number}", parent, meta)
        if parent:
            labels[f"{_REF}.snapshot.{SNAPSHOTTER}"] = parent
        manifest = self._blob(f"{name} manifest".encode(), meta, labels)
        image = images.Image(name=name)
        image.target.media_type = "application/vnd.oci.image.manifest.v1+json"
        image.target.digest, image.target.size = manifest, len(name) + 9
        self._client.images.Create(images.CreateImageRequest(image=image), metadata=meta)
        return manifest

    def _blob(
        self, data: bytes, meta: tuple[tuple[str, str], ...], labels: dict[str, str] | None = None
    ) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        request = content.WriteContentRequest(
            action=content.COMMIT,
            ref=digest,
            total=len(data),
            data=data,
            expected=digest,
            labels=labels,
        )
        for _ in self._client.content.Write(iter([request]), metadata=meta, timeout=60):
            pass
        return digest

    def _snapshot(self, name: str, parent: str, meta: tuple[tuple[str, str], ...]) -> str:
        stub, key = self._client.snapshots, f"{name}-work"
        prepare = snapshots.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent)
        stub.Prepare(prepare, metadata=meta, timeout=60)
        commit = snapshots.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name=name, key=key)
        stub.Commit(commit, metadata=meta, timeout=60)
        return name

    def thin(self) -> float:
        """Removes one image with what only it held; the seconds until that is done."""
        name, _ = self.names.pop(), self.digests.pop()
        began = time.perf_counter()
        self._client.images.Delete(images.DeleteImageRequest(name=name, sync=True), metadata=META)
        return time.perf_counter() - began

    def clear(self) -> None:
        """Removes all that is left."""
        for name in self.names:
            last = name == self.names[-1]
            request = images.DeleteImageRequest(name=name, sync=last)
            self._client.images.Delete(request, metadata=META, timeout=120)
        self.names, self.digests = [], []


@contextmanager
def filled(client: Client, size: Size) -> Iterator[Heap]:
    """A heap while the block runs."""
    heap = Heap(client, size)
    heap.fill()
    try:
        yield heap
    finally:
        heap.clear()


class Reads:
    """Calls that read, one after the other in a thread, and how long each took."""

    def __init__(self, calls: Iterable[Callable[[], object]]) -> None:
        self._calls = list(calls)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._seconds: list[float] = []
        self._failure: grpc.RpcError | None = None

    def _run(self) -> None:
        while not self._stop.is_set():
            for call in self._calls:
                began = time.perf_counter()
                try:
                    call()
                except grpc.RpcError as error:
                    self._failure = error
                self._seconds.append(time.perf_counter() - began)

    def results(self) -> list[float]:
        """How long each took in seconds. Raises what one of them raised."""
        if self._failure is not None:
            raise self._failure
        return self._seconds

    def __enter__(self) -> Reads:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def reads(client: Client, heap: Heap) -> Reads:
    """Reads of what stays: a blob's record, its bytes, a list of images, a snapshot."""
    digest, name = heap.digests[0], heap.names[0]
    info = content.InfoRequest(digest=digest)
    read = content.ReadContentRequest(digest=digest)
    get = images.GetImageRequest(name=name)
    stat = snapshots.StatSnapshotRequest(snapshotter=SNAPSHOTTER, key=f"{name}/0")
    return Reads(
        [
            lambda: client.content.Info(info, metadata=META),
            lambda: list(client.content.Read(read, metadata=META)),
            lambda: client.images.Get(get, metadata=META),
            lambda: client.snapshots.Stat(stat, metadata=META),
        ]
    )
