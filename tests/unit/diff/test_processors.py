"""Stream processors: chosen by media type, run in a chain, fed a payload, and ended."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import lzma
import os
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from supervisord.contracts.errors import Error, FailedPrecondition, Unimplemented, Unknown
from supervisord.contracts.images import Descriptor
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.typed import TypedValue
from supervisord.diff import Differ, configured
from supervisord.diff.media import OCI, OCI_GZIP
from supervisord.diff.processors import BUILT_IN, Processor
from tests.unit.unpack.archives import archive, folder, member

from .conftest import House

pytestmark = [
    pytest.mark.blocks("it mounts, and writes to the mounts"),
    pytest.mark.parametrize("house", ["overlayfs"], indirect=True),
]

LAYER = archive(folder("d"), member("d/f", os.urandom(300_000)))
DIGEST = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
XZ = "application/x-layer+xz"
TEXT = "application/x-layer+base64"


def shell(script: str, accepts: str = XZ, returns: str = OCI, **rest: object) -> Processor:
    return configured(
        {
            "test": {
                "accepts": [accepts],
                "returns": returns,
                "path": "/bin/sh",
                "args": ["-c", script],
                **rest,
            }
        }
    )[0]


@pytest.fixture
async def mounts(house: House) -> list[Mount]:
    return list(await house.snapshotter.prepare("key", "", {}))


def use(house: House, *processors: Processor) -> None:
    workers = house.differ._workers
    house.differ = Differ(
        house.stores.content, workers, house.tmp_path / "state", processors=processors
    )


async def failure(house: House, data: bytes, mounts: list[Mount]) -> Error:
    with pytest.raises(Error) as caught:
        await house.apply(await house.blob(data, XZ), mounts)
    return caught.value


async def test_a_program(house: House, mounts: list[Mount]) -> None:
    use(house, shell("exec xz -dc"))
    applied = await house.apply(await house.blob(lzma.compress(LAYER), XZ), mounts)
    assert applied == Descriptor(OCI, DIGEST, len(LAYER))
    assert (Path(mounts[0].source) / "d/f").stat().st_size == 300_000


async def test_a_chain_that_ends_in_gzip(house: House, mounts: list[Mount]) -> None:
    data = base64.encodebytes(lzma.compress(gzip.compress(LAYER)))
    use(house, shell("exec base64 -d", TEXT, XZ), shell("exec xz -dc", XZ, OCI_GZIP))
    applied = await house.apply(await house.blob(data, TEXT), mounts)
    assert applied == Descriptor(OCI, DIGEST, len(LAYER))


async def test_configured_ones_come_before_what_is_built_in(
    house: House, mounts: list[Mount]
) -> None:
    use(house, shell("exec base64 -d", OCI_GZIP, OCI))
    data = base64.encodebytes(LAYER)
    assert (await house.apply(await house.blob(data, OCI_GZIP), mounts)).digest == DIGEST


async def test_what_a_program_gets(house: House, mounts: list[Mount], tmp_path: Path) -> None:
    script = f'env > {tmp_path}/env; cat <&3 > {tmp_path}/payload; echo "$0" > {tmp_path}/0; cat'
    use(house, shell(script, env=["ONE=1", "TWO=a=b"]))
    payload = TypedValue("some/type", b"\x00key" * 50_000)
    await house.apply(await house.blob(LAYER, XZ), mounts, test=payload, other=TypedValue("no"))
    environment = dict(
        line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines()
    )
    assert environment["STREAM_PROCESSOR_MEDIATYPE"] == XZ
    assert (environment["ONE"], environment["TWO"]) == ("1", "a=b")
    assert environment["PATH"] == os.environ["PATH"]
    received = Any.FromString((tmp_path / "payload").read_bytes())
    assert (received.type_url, received.value) == ("some/type", payload.value)


async def test_without_a_payload_there_is_no_third_descriptor(
    house: House, mounts: list[Mount], tmp_path: Path
) -> None:
    use(house, shell(f"ls /proc/$$/fd > {tmp_path}/fds; cat"))
    await house.apply(await house.blob(LAYER, XZ), mounts)
    assert {"0", "1", "2"} <= set((tmp_path / "fds").read_text().split()) <= {"0", "1", "2", "10"}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no key >&2; exit 3", "stream processor '/bin/sh': no key"),
        ("head -c 1000; echo half >&2; exit 1", "half"),
        ("cat; exit 9", "exit status 9"),
        ("cat; kill -TERM $$", "killed by signal 15"),
        ("cat; yes error | head -c 1000000 >&2; exit 1", "error"),
    ],
)
async def test_failures(house: House, mounts: list[Mount], script: str, message: str) -> None:
    use(house, shell(script))
    error = await failure(house, LAYER, mounts)
    assert isinstance(error, Unknown)
    assert message in error.message
    assert len(error.message) < 5000


async def test_output_that_is_no_layer(house: House, mounts: list[Mount]) -> None:
    """The layer's fault is told, not that of a program that is killed in the midst of writing."""
    use(house, shell("exec yes"))
    assert "archive header" in (await failure(house, b"", mounts)).message


async def test_programs_that_cannot_be_executed(house: House, mounts: list[Mount]) -> None:
    entry = {"accepts": [XZ], "returns": OCI}
    for path, kind in (("no-such-program", Unimplemented), ("/etc/passwd", FailedPrecondition)):
        use(house, *configured({"test": {**entry, "path": path}}))
        error = await failure(house, path.encode(), mounts)
        assert type(error) is kind
        assert f"{path!r} cannot be executed" in error.message


async def test_encrypted_layers_need_a_decoder(house: House, mounts: list[Mount]) -> None:
    use(house, *BUILT_IN)
    for media_type in (f"{OCI}+encrypted", f"{OCI_GZIP}+encrypted"):
        with pytest.raises(Unimplemented, match="ctd-decoder"):
            await house.apply(await house.blob(media_type.encode(), media_type), mounts)


async def test_it_ends_with_its_caller(house: House, mounts: list[Mount], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    use(house, shell(f"echo $$ > {tmp_path}/started; exec sleep 1000"))
    blob = await house.blob(LAYER, XZ)
    task = asyncio.ensure_future(house.apply(blob, mounts))
    pid = int(await asyncio.to_thread((tmp_path / "started").read_text))
    ended = os.pidfd_open(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    try:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(ended, over.set)
        await asyncio.wait_for(over.wait(), 10)
        loop.remove_reader(ended)
    finally:
        os.close(ended)
