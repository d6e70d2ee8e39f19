"""Images of other tools come in, and ours go out to them: skopeo and umoci.

Both write and read OCI layouts by their own libraries, so they are a second opinion on what import
and export mean.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.ctr import Ctr
from tests.conformance.fixtures import IMAGE
from tests.conformance.ocitar import Image

pytestmark = pytest.mark.skipif(
    shutil.which("skopeo") is None or shutil.which("umoci") is None,
    reason="skopeo or umoci is not installed",
)


def tool(*command: str) -> str:
    """Runs a tool; answers its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def collected(ctr: Ctr) -> Iterator[Ctr]:
    """``ctr``, with what the test removed collected at the end."""
    yield ctr
    ctr("leases", "rm", "--sync", ctr("leases", "create").out.strip())


def test_skopeo_archive_imports(
    collected: Ctr, image: Image, image_tar: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "copied.tar"
    tool("skopeo", "copy", f"oci-archive:{image_tar}", f"oci-archive:{archive}:docker.io/x/y:1")
    collected("i", "import", "--base-name", "docker.io/x/y", str(archive))
    (row,) = collected("i", "check").rows()
    assert row[3] == "complete"
    assert row[-1] == "true"
    assert {row[0] for row in collected("snapshots", "ls").rows()} == set(image.chain_ids)


def test_skopeo_docker_archive_imports_and_runs(
    collected: Ctr, image: Image, image_tar: Path, tmp_path: Path, unique: str
) -> None:
    archive = tmp_path / "docker.tar"
    name = "docker.io/x/y:1"
    tool("skopeo", "copy", f"oci-archive:{image_tar}", f"docker-archive:{archive}:{name}")
    collected("i", "import", str(archive))
    assert collected("i", "ls", "-q").out.split() == [name]
    assert {row[0] for row in collected("snapshots", "ls").rows()} == set(image.chain_ids)
    result = collected("run", "--rm", name, unique, "cat", "/data/replaced")
    assert result.out == "second\n"


def test_skopeo_reads_what_is_exported(
    collected: Ctr, image: Image, image_tar: Path, tmp_path: Path
) -> None:
    collected("i", "import", str(image_tar))
    archive = tmp_path / "out.tar"
    collected("i", "export", str(archive), IMAGE)
    found = json.loads(tool("skopeo", "inspect", f"oci-archive:{archive}"))
    assert found["Digest"] == image.manifest
    assert found["Layers"] == image.layers
    layout = tmp_path / "layout"
    tool("skopeo", "copy", f"oci-archive:{archive}", f"oci:{layout}:latest")
    blobs = {f"sha256:{path.name}" for path in (layout / "blobs/sha256").iterdir()}
    assert blobs >= {*image.layers, image.config, image.manifest}


def test_umoci_image_imports_and_runs(collected: Ctr, tmp_path: Path, unique: str) -> None:
    layout = tmp_path / "layout"
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "only").write_text("in the first layer\n")
    tool("umoci", "init", "--layout", str(layout))
    tool("umoci", "new", "--image", f"{layout}:latest")
    tool("umoci", "insert", "--image", f"{layout}:latest", str(root), "/")
    tool("umoci", "insert", "--image", f"{layout}:latest", "--whiteout", "/only")
    tool("umoci", "config", "--image", f"{layout}:latest", "--config.env", "PATH=/bin")
    archive = tmp_path / "umoci.tar"
    tool("tar", "-C", str(layout), "-cf", str(archive), ".")
    collected("i", "import", "--base-name", "docker.io/x/umoci", str(archive))
    (name,) = collected("i", "ls", "-q").out.split()
    script = "test -e /only && echo there; echo ran"
    assert collected("run", "--rm", name, unique, "sh", "-c", script).out == "ran\n"


def test_umoci_unpacks_what_is_exported(collected: Ctr, image_tar: Path, tmp_path: Path) -> None:
    collected("i", "import", str(image_tar))
    archive = tmp_path / "out.tar"
    collected("i", "export", str(archive), IMAGE)
    layout = tmp_path / "layout"
    layout.mkdir()
    tool("tar", "-C", str(layout), "-xf", str(archive))
    (tag,) = tool("umoci", "ls", "--layout", str(layout)).split()
    bundle = tmp_path / "bundle"
    tool("umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle))
    data = bundle / "rootfs/data"
    assert (data / "replaced").read_text() == "second\n"
    assert os.listdir(data / "opaque") == ["above"]
    assert not (data / "gone").exists()
