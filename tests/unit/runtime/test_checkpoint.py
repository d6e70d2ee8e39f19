"""Checkpoints on their way to and from the content store. CRIU itself is not needed: a stand-in
for the shim writes what CRIU would."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    Error,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.contracts.images import Descriptor
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.contracts.tasks import CreateTask
from supervisord.contracts.typed import TypedValue, pack
from supervisord.runtime.bundle import Bundle
from supervisord.runtime.checkpoint import CONFIG, IMAGE, Checkpoints

NS = "ns"
SCOPE = Scope(NS)
SPEC = TypedValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}")


class Content:
    """Blobs in memory: the part of a content store that checkpoints use."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.scopes: list[Scope] = []

    async def writer(self, scope: Scope, ref: str, *, total: int = 0, media_type: str = "") -> Any:
        self.scopes.append(scope)
        return Ingest(self)

    async def reader(self, scope: Scope, digest: str) -> IO[bytes]:
        if digest not in self.blobs:
            raise NotFound(f"content {digest}: not found")
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.write(self.blobs[digest])
        file.flush()
        return file

    def put(self, data: bytes) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return Descriptor(IMAGE, digest, len(data))


class Ingest:
    def __init__(self, content: Content) -> None:
        self.content = content
        self.data = b""

    async def truncate(self, size: int) -> None:
        self.data = self.data[:size]

    async def write(self, data: bytes) -> None:
        self.data += data

    async def commit(self, size: int, expected: str, labels: Mapping[str, str]) -> None:
        assert size == len(self.data)
        if expected in self.content.blobs:
            raise AlreadyExists(expected)
        assert self.content.put(self.data).digest == expected

    async def close(self) -> None:
        return None


class Shim:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.paths: list[str] = []

    async def checkpoint(self, path: str, options: TypedValue) -> None:
        self.paths.append(path)
        if self.fails:
            raise Unimplemented("no criu")
        (Path(path) / "pages-1.img").write_bytes(b"memory")


class Leases:
    """Those that were made."""

    def __init__(self) -> None:
        self.made: list[Lease] = []

    async def create(self, namespace: str, lease: Lease) -> Lease:
        assert namespace == NS
        self.made.append(lease)
        return lease


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def content() -> Content:
    return Content()


@pytest.fixture
def checkpoints(content: Content, leases: Leases, tmp_path: Path) -> Checkpoints:
    return Checkpoints(content, leases, str(tmp_path))  # type: ignore[arg-type]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "bundle").mkdir()
    return Bundle(NS, "web", str(tmp_path / "bundle"))


async def test_there_and_back(
    checkpoints: Checkpoints, content: Content, bundle: Bundle, tmp_path: Path
) -> None:
    shim = Shim()
    image, config = await checkpoints.make(SCOPE, shim, SPEC, TypedValue())  # type: ignore[arg-type]
    assert (image.media_type, config.media_type) == (IMAGE, CONFIG)
    assert AnyMessage.FromString(content.blobs[config.digest]).value == b"{}"
    assert not Path(shim.paths[0]).exists()
    again = await checkpoints.make(SCOPE, Shim(), SPEC, TypedValue())  # type: ignore[arg-type]
    assert again[1] == config
    request = CreateTask("web", checkpoint=image)
    path = await checkpoints.lay_out(NS, request, TypedValue(), bundle)
    assert Path(path) == Path(bundle.path, "checkpoint")
    assert Path(path, "pages-1.img").read_bytes() == b"memory"


async def test_what_is_written_is_held(
    checkpoints: Checkpoints, content: Content, leases: Leases
) -> None:
    own = Scope(NS, "lease")
    await checkpoints.make(own, Shim(), SPEC, TypedValue())  # type: ignore[arg-type]
    assert content.scopes == [own, own]
    assert not leases.made
    await checkpoints.make(SCOPE, Shim(), SPEC, TypedValue())  # type: ignore[arg-type]
    (made,) = leases.made
    assert content.scopes[2:] == [Scope(NS, made.id)] * 2
    end = datetime.fromisoformat(made.labels["containerd.io/gc.expire"])
    assert timedelta(minutes=58) < end - datetime.now(UTC) <= timedelta(hours=1)


async def test_into_a_folder_of_the_client(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shim = Shim()
    options = pack(options_pb2.CheckpointOptions(image_path=str(tmp_path)))
    assert await checkpoints.make(SCOPE, shim, SPEC, options) == []  # type: ignore[arg-type]
    assert (tmp_path / "pages-1.img").exists()


async def test_a_failed_one_leaves_nothing(
    checkpoints: Checkpoints, content: Content, tmp_path: Path
) -> None:
    with pytest.raises(Unimplemented, match="criu"):
        await checkpoints.make(SCOPE, Shim(fails=True), SPEC, TypedValue())  # type: ignore[arg-type]
    assert not content.blobs
    assert not list(tmp_path.glob("checkpoint-*"))


async def test_other_ways_to_name_one(checkpoints: Checkpoints, bundle: Bundle) -> None:
    plain = CreateTask("web")
    assert await checkpoints.lay_out(NS, plain, TypedValue(), bundle) == ""
    options = pack(options_pb2.Options(criu_image_path="/images"))
    assert await checkpoints.lay_out(NS, plain, options, bundle) == "/images"
    annotated = Descriptor(annotations={"RestoreFromPath": "/saved"})
    request = CreateTask("web", checkpoint=annotated)
    assert await checkpoints.lay_out(NS, request, TypedValue(), bundle) == "/saved"


def hostile() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("../../evil")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


@pytest.mark.parametrize("data", [hostile(), b"no tar at all"])
async def test_hostile_or_damaged_blobs(
    checkpoints: Checkpoints, content: Content, bundle: Bundle, tmp_path: Path, data: bytes
) -> None:
    request = CreateTask("web", checkpoint=content.put(data))
    with pytest.raises(DataLoss, match="checkpoint"):
        await checkpoints.lay_out(NS, request, TypedValue(), bundle)
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(
    ("descriptor", "kind"),
    [
        (Descriptor("text/plain", "sha256:" + "0" * 64), InvalidArgument),
        (Descriptor(IMAGE, "sha256:" + "0" * 64), NotFound),
    ],
)
async def test_wrong_descriptors(
    checkpoints: Checkpoints, bundle: Bundle, descriptor: Descriptor, kind: type[Error]
) -> None:
    request = CreateTask("web", checkpoint=descriptor)
    with pytest.raises(kind):
        await checkpoints.lay_out(NS, request, TypedValue(), bundle)


async def test_wrong_options(checkpoints: Checkpoints) -> None:
    for options in (TypedValue("some.Other", b""), pack(options_pb2.Options())):
        with pytest.raises(InvalidArgument, match="options"):
            await checkpoints.make(SCOPE, Shim(), SPEC, options)  # type: ignore[arg-type]
