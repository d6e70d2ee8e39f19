"""``sctl images pull``, ``push`` and ``tree`` with Debian's registry."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conformance.ocitar import Image
from tests.e2e.conftest import Sctl
from tests.registries.certificates import Authority
from tests.registries.server import PASSWORD, USER, Server, fill, needed, put_manifest, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

Lasting = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def registry(
    lasting: Lasting, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One that wants a password, and has the image as ``library/busybox:latest``."""
    with lasting(), server(tmp_path_factory.mktemp("registry"), password=True) as found:
        fill(found, image_tar, "busybox:latest", password=True)
        yield found


def test_there_and_back(sctl: Sctl, registry: Server, image: Image, unique: str) -> None:
    name = f"{registry.address}/busybox:latest"
    user = f"--user={USER}:{PASSWORD}"
    found = sctl("images", "pull", user, "--plain-http", name)
    assert found.out == f"{name} {image.manifest}\n"
    assert f"layer {image.layers[0][7:19]}: extracted" in found.err
    assert sctl("run", "--rm", name, unique, "echo", "hello").out == "hello\n"
    copy = f"{registry.address}/copies/{unique}:2"
    assert sctl("images", "push", user, name, copy).out == f"{copy} {image.manifest}\n"
    assert sctl("images", "pull", "-q", user, copy).out == f"{copy}\n"
    tree = sctl("images", "tree", copy).out.splitlines()
    assert tree[:2] == [copy, tree[1]]
    assert f"manifest {image.manifest[7:19]}" in tree[1]
    assert [line.split()[1] for line in tree[2:]] == ["config", *["layer"] * len(image.layers)]
    value = json.loads(sctl("images", "tree", "--json", copy).out)
    assert [child["here"] for child in value["children"]] == [True] * (1 + len(image.layers))


def test_docker_knows_who_we_are(
    sctl: Sctl, registry: Server, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    name = f"{registry.address}/busybox"
    found = sctl("images", "pull", "--no-unpack", name)
    assert found.out == f"{name}:latest {image.manifest}\n"
    assert sctl("snapshots", "ls", "-q").out == ""


def test_short_names(
    sctl: Sctl, registry: Server, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCTL_REGISTRY", registry.address)
    monkeypatch.setenv("SCTL_PASSWORD", PASSWORD)
    found = sctl("images", "pull", "--user", USER, "busybox")
    assert found.out == f"{registry.address}/busybox:latest {image.manifest}\n"


def test_folders_of_hosts(sctl: Sctl, image_tar: Path, image: Image, tmp_path: Path) -> None:
    """A mirror with a certificate of its own stands for a registry that cannot be reached."""
    authority = Authority(tmp_path / "ca")
    folder = tmp_path / "hosts" / "registry.invalid"
    folder.mkdir(parents=True)
    with server(tmp_path, authority=authority) as mirror:
        fill(mirror, image_tar, "busybox:1")
        (folder / "hosts.toml").write_text(
            f'[host."https://{mirror.address}"]\nca = "{authority.certificate}"\n'
        )
        hosts = f"--hosts-dir={tmp_path / 'hosts'}"
        found = sctl("images", "pull", hosts, "registry.invalid/busybox:1")
        assert found.out == f"registry.invalid/busybox:1 {image.manifest}\n"
        (folder / "hosts.toml").write_text("server = 5")
        sctl.refused(
            "images", "pull", hosts, "registry.invalid/busybox:1", says="server: must be a string"
        )


def test_mistakes(sctl: Sctl, registry: Server) -> None:
    name = f"{registry.address}/busybox"
    sctl.refused("images", "pull", name, says="wants a user and a password")
    sctl.refused("images", "pull", f"--user={USER}:wrong", name, says="access denied")
    sctl.refused("images", "pull", f"--user={USER}", name, says="SCTL_PASSWORD")
    sctl.refused("images", "pull", "No", says="must be lower case")
    sctl.refused("images", "pull", f"https://{name}", says="without https://")
    sctl.refused("images", "pull", "--platform=x/y/z/a", name, says="platform")
    sctl.refused("images", "push", "absent", says="not found")
    assert sctl("images", "ls", "-q").out == ""
    assert sctl("leases", "ls", "-q").out == ""


def test_tags_and_referrers(sctl: Sctl, image_tar: Path, image: Image, tmp_path: Path) -> None:
    """skopeo pushes the tags; the index of referrers has the tag that the specification says."""
    with server(tmp_path) as registry:
        for tag in ("1", "2", "latest"):
            fill(registry, image_tar, f"me/app:{tag}")
        name = f"{registry.address}/me/app"
        assert sorted(sctl("images", "tags", name).out.split()) == ["1", "2", "latest"]
        listed = sctl("images", "tags", "--format=json", f"{name}:1")
        assert sorted(json.loads(listed.out)) == ["1", "2", "latest"]
        sctl.refused("images", "tags", f"{registry.address}/no/such", says="404")
        assert "ARTIFACT TYPE" in sctl("images", "referrers", f"{name}:1").out
        signature = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest,
            "size": len(image.blobs[image.manifest]),
            "artifactType": "application/vnd.example.signature",
            "annotations": {"by": "me"},
        }
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [signature],
        }
        put_manifest(registry, "me/app", image.manifest.replace(":", "-"), index)
        (row,) = sctl("images", "referrers", f"{name}:1").rows()
        assert row[:2] == ["application/vnd.example.signature", image.manifest]
        other = sctl("images", "referrers", "--artifact-type=other", "--format=json", f"{name}:1")
        assert json.loads(other.out) == {"subject": image.manifest, "referrers": []}
        by_digest = sctl("images", "referrers", "--format=json", f"{name}@{image.manifest}")
        (found,) = json.loads(by_digest.out)["referrers"]
        assert found["annotations"] == {"by": "me"}


def test_a_registry_that_is_not_there(sctl: Sctl) -> None:
    """It is the registry that is not reached, and not the daemon."""
    for words in (["pull"], ["tags"], ["referrers"]):
        result = sctl.refused("images", *words, "127.0.0.1:9/a", says="127.0.0.1")
        assert "Connect call failed" in result.err
        assert "is the daemon running" not in result.err
