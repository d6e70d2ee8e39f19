"""Stream processors by containerd's configuration, with programs that are on every machine."""

from __future__ import annotations

import base64
import lzma
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from protos.containerd.services.namespaces.v1 import namespaces_pb2

from . import ocitar
from .daemons import KINDS, Daemon
from .layers import Tree
from .ocitar import LAYER, Member, sha256
from .wire import Wire

XZ = "application/x-test-layer+xz"
KEYED = "application/x-test-layer+key"
FAILING = "application/x-test-layer+bad"
PLAIN = ocitar.tar([Member("f", b"contents")])
CONFIG = """
[stream_processors."test.xz"]
accepts = ["{XZ}"]
returns = "{LAYER}"
path = "xz"
args = ["-dc"]

[stream_processors."test.key"]
accepts = ["{KEYED}"]
returns = "{XZ}"
path = "/bin/sh"
args = ["-c", "cat <&3 > {folder}/payload; env > {folder}/env; exec base64 -d"]
env = ["MINE=1"]

[stream_processors."test.bad"]
accepts = ["{FAILING}"]
returns = "{LAYER}"
path = "/bin/sh"
args = ["-c", "cat; echo the key is wrong >&2; exit 3"]
"""


@pytest.fixture
def tree(daemon: Daemon, unique: str, tmp_path: Path) -> Iterator[Tree]:
    """On a daemon of the same kind with three processors, of which one writes to ``tmp_path``."""
    started = KINDS[daemon.name]()
    started.more = CONFIG.format(XZ=XZ, LAYER=LAYER, KEYED=KEYED, FAILING=FAILING, folder=tmp_path)
    try:
        started.start()
        wire = Wire(started.address, unique, ours=started.ours)
        namespace = namespaces_pb2.Namespace(name=unique)
        wire.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=namespace))
        yield Tree(wire, "overlayfs", tmp_path)
        wire.close()
    finally:
        started.close()


def test_one(tree: Tree) -> None:
    mounts = tree.prepare("key")
    applied = tree.apply(lzma.compress(PLAIN), mounts, XZ)
    assert (applied.media_type, applied.digest, applied.size) == (LAYER, sha256(PLAIN), len(PLAIN))
    with tree.mounted(mounts) as root:
        assert (root / "f").read_text() == "contents"


def test_a_chain_with_a_payload(tree: Tree, tmp_path: Path) -> None:
    blob = base64.encodebytes(lzma.compress(PLAIN))
    payload = Any(type_url="some/type", value=b"secret")
    request = {"test.key": payload, "test.xz.not": payload}
    applied = tree.apply(blob, tree.prepare("key"), KEYED, **request)
    assert applied.digest == sha256(PLAIN)
    assert Any.FromString((tmp_path / "payload").read_bytes()) == payload
    environment = (tmp_path / "env").read_text().splitlines()
    assert {f"STREAM_PROCESSOR_MEDIATYPE={KEYED}", "MINE=1"} <= set(environment)


@pytest.mark.only("supervisord", "containerd looks before the program has ended, now and then")
def test_a_failing_one(tree: Tree) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        tree.apply(PLAIN, tree.prepare("key"), FAILING)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "the key is wrong" in (caught.value.details() or "")
