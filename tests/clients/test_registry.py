"""A registry in the middle: ``ctr`` pulls through the daemon's content store, and pushes from it.

The registry is Debian's ``docker-registry`` over plain HTTP on loopback; ``skopeo`` fills it and
reads it back as the second opinion.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conformance.ctr import Ctr
from tests.conformance.ocitar import Image

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None or shutil.which("skopeo") is None,
    reason="docker-registry or skopeo is not installed",
)

_CONFIG = """version: 0.1
storage:
  filesystem:
    rootdirectory: {root}
  delete:
    enabled: true
http:
  addr: {address}
"""


@pytest.fixture(scope="module")
def registry(
    lasting: Callable[[], AbstractContextManager[None]],
    image_tar: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a registry that holds the image as ``busybox:1``."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", address=address))
    with (folder / "log").open("wb") as log, lasting():
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
        try:
            _ready(process, address)
            source = f"oci-archive:{image_tar}"
            target = f"docker://{address}/busybox:1"
            _skopeo("copy", "--dest-tls-verify=false", source, target)
            yield address
        finally:
            process.terminate()
            process.wait(10)


def _ready(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
            return
        except urllib.error.URLError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _skopeo(*arguments: str) -> str:
    done = subprocess.run(
        ["skopeo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_pulled_runs(ctr: Ctr, registry: str, image: Image, unique: str) -> None:
    name = f"{registry}/busybox:1"
    ctr("i", "pull", "--plain-http", name)
    (row,) = ctr("i", "check").rows()
    assert row[3] == "complete"
    assert {row[0] for row in ctr("snapshots", "ls").rows()} == set(image.chain_ids)
    assert ctr("run", "--rm", name, unique, "echo", "pulled").out == "pulled\n"


def test_what_is_pushed_is_what_was_pulled(ctr: Ctr, registry: str, image: Image) -> None:
    name = f"{registry}/busybox:1"
    copy = f"{registry}/copies/of/busybox:2"
    ctr("i", "pull", "--plain-http", name)
    ctr("i", "push", "--plain-http", copy, name)
    found = json.loads(_skopeo("inspect", "--tls-verify=false", f"docker://{copy}"))
    assert found["Digest"] == image.manifest
    assert found["Layers"] == image.layers


def test_a_name_that_is_not_there(ctr: Ctr, registry: str) -> None:
    ctr.refused("i", "pull", "--plain-http", f"{registry}/no/such:1", says="not found")
    assert ctr("i", "ls", "-q").out == ""
    assert ctr("content", "ls", "-q").out == ""
