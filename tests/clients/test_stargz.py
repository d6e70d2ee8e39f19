"""containerd's stargz-snapshotter as a proxy plugin: its layers stay in the registry until they are
read, its snapshots are there before anything is unpacked.

Debian has its client (``ctr-remote``, of stargz-snapshotter) but not its server; where that is
installed (``containerd-stargz-grpc``), both daemons drive it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.test_registry import registry as registry
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import KINDS, Daemon
from tests.conformance.fixtures import IMAGE
from tests.e2e.proxies import NAMESPACE, Proxy, Stargz, run_and_remove, running, served


class Remote(Ctr):
    """``ctr-remote``: ``ctr`` with verbs of its own."""

    def command(self, *arguments: str) -> list[str]:
        return [str(Stargz.client), *super().command(*arguments)[1:]]


@pytest.fixture(params=KINDS)
def daemon(request: pytest.FixtureRequest) -> Daemon:  # not the shared one: it has a proxy
    return KINDS[request.param]()


@pytest.fixture
def stargz() -> Iterator[Proxy]:
    if Stargz.program is None or Stargz.client is None:
        pytest.skip("containerd-stargz-grpc is not installed")
    with served("stargz") as proxy:
        yield proxy


def test_images_are_unpacked_and_run(daemon: Daemon, stargz: Proxy, image_tar: Path) -> None:
    with running(daemon, stargz.table("stargz")) as ctr:
        run_and_remove(ctr, "stargz", image_tar)


def test_layers_are_pulled_lazily(
    daemon: Daemon, stargz: Proxy, registry: str, image_tar: Path
) -> None:
    name = f"{registry}/busybox:lazy"
    words = ["--snapshotter", "stargz"]
    with running(daemon, stargz.table("stargz")):
        one = Remote(daemon.address, NAMESPACE)
        two = Remote(daemon.address, f"{NAMESPACE}-2")
        one("images", "import", "--no-unpack", str(image_tar), timeout=60)
        one("images", "convert", "--estargz", "--oci", IMAGE, name, timeout=60)
        one("images", "push", "--plain-http", name)
        one("images", "rm", "--sync", IMAGE, name)
        for ctr in (one, two):
            ctr("images", "rpull", "--plain-http", name)
            kinds = [row[-1] for row in ctr("snapshots", *words, "ls").rows()]
            assert kinds == ["Committed"] * 3
            assert len(ctr("content", "ls", "-q").out.split()) == 2  # manifest and config
            done = ctr("run", "--rm", *words, name, "c", "cat", "/data/kept")
            assert done.out == "kept\n"
        (snapshot, *_) = one("snapshots", *words, "ls").rows()
        assert "containerd.io/snapshot/remote" in one("snapshots", *words, "info", snapshot[0]).out
        one("images", "rm", "--sync", name)
        assert one("snapshots", *words, "ls").rows() == []
        assert two("run", "--rm", *words, name, "c", "echo", "still").out == "still\n"
        two("images", "rm", "--sync", name)
        assert two("snapshots", *words, "ls").rows() == []
        two("namespaces", "rm", f"{NAMESPACE}-2")
    mounts = Path("/proc/self/mountinfo").read_text()
    if daemon.ours:  # containerd collects once more some time
        assert f"{stargz.base}/" not in mounts
