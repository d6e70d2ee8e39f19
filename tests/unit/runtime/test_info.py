"""What a runtime can do, with real OCI runtimes and a scripted shim."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.types import types_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import InvalidArgument, NotFound, Unimplemented, Unknown
from supervisord.contracts.typed import TypedValue, pack
from supervisord.runtime.info import FEATURES_URL, runtime_info
from supervisord.runtime.oci import OciRuntimes


def _runtimes(tmp_path: Path) -> OciRuntimes:
    return OciRuntimes(str(tmp_path), TaskOwner("test"), fixed=shutil.which("runc") or "")


def _request(path: str = "", **options: str) -> TypedValue:
    request = types_pb2.RuntimeRequest(runtime_path=path)
    if options:
        request.options.Pack(options_pb2.Options(**options))  # type: ignore[arg-type]
    return pack(request)


def _info(value: TypedValue) -> types_pb2.RuntimeInfo:
    assert value.type_url == "containerd.types.RuntimeInfo"
    return types_pb2.RuntimeInfo.FromString(value.value)


async def test_the_default_tells_its_features(tmp_path: Path) -> None:
    info = _info(await runtime_info(_request(), _runtimes(tmp_path)))
    assert info.name == "io.containerd.runc.v2"
    assert info.version.version
    assert info.features.type_url == FEATURES_URL
    assert "linux" in json.loads(info.features.value)


async def test_the_options_name_another_binary_and_come_back(tmp_path: Path) -> None:
    binary = tmp_path / "old-runc"
    binary.write_text("#!/bin/sh\necho 'unknown command features' >&2\nexit 1\n")
    binary.chmod(0o755)
    request = _request("io.containerd.runc.v2", binary_name=str(binary))
    info = _info(await runtime_info(request, _runtimes(tmp_path)))
    assert not info.HasField("features")
    returned = options_pb2.Options()
    assert info.options.Unpack(returned)
    assert returned.binary_name == str(binary)


async def test_a_foreign_shim_is_asked_itself(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_bytes(types_pb2.RuntimeInfo(name="mine").SerializeToString())
    shim = tmp_path / "shim"
    shim.write_text(f'#!/bin/sh\n[ "$1" = -info ] && cat {answer}\n')
    shim.chmod(0o755)
    assert _info(await runtime_info(_request(str(shim)), _runtimes(tmp_path))).name == "mine"
    shim.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 2\n")
    with pytest.raises(Unknown, match="no such flag"):
        await runtime_info(_request(str(shim)), _runtimes(tmp_path))
    shim.write_text("#!/bin/sh\nprintf '\\377'\n")
    with pytest.raises(Unknown, match="no RuntimeInfo"):
        await runtime_info(_request(str(shim)), _runtimes(tmp_path))


async def test_what_cannot_be_answered(tmp_path: Path) -> None:
    runtimes = _runtimes(tmp_path)
    with pytest.raises(Unimplemented, match=r"unknown request type 'some\.Thing'"):
        await runtime_info(TypedValue("some.Thing"), runtimes)
    with pytest.raises(InvalidArgument, match="RuntimeRequest"):
        await runtime_info(TypedValue("containerd.types.RuntimeRequest", b"\xff"), runtimes)
    with pytest.raises(NotFound, match="not installed"):
        await runtime_info(_request("io.containerd.none.v9"), runtimes)
    with pytest.raises(NotFound, match="no-such-runc"):
        await runtime_info(_request(binary_name="no-such-runc"), runtimes)
