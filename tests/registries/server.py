"""``docker-registry`` processes: plain, behind TLS, with a password, with tokens."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.registries.certificates import Authority

needed = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("docker-registry", "skopeo", "openssl")),
    reason="docker-registry, skopeo or openssl is not installed",
)

USER, PASSWORD = "user", "pass:word"
_BCRYPT = "$2y$04$aaaaaaaaaaaaaaaaaaaaaO2ojRQk0JnPktnn8TfCw5pcrplLffmpW"
"""Of the password: the registry reads nothing else."""

_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running registry: ``HOST:PORT``, where it keeps blobs, and its log."""

    address: str
    folder: Path
    log: Path

    def requests(self, *words: str) -> list[str]:
        """The lines of its log with all these words."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if all(word in line for word in words)]


@contextmanager
def server(
    folder: Path,
    *,
    authority: Authority | None = None,
    password: bool = False,
    token: Mapping[str, str] | None = None,
    client_authority: bool = False,
    names: Sequence[str] = (),
) -> Iterator[Server]:
    """A registry on a free port of loopback. With an ``authority`` it speaks TLS, and with
    ``client_authority`` to those only that the authority knows; ``token`` is its table for them;
    ``names`` are what it is called besides its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    http: dict[str, Any] = {"addr": address, "relativeurls": True}
    if authority is not None:
        certificate, key = authority.issue("127.0.0.1", *names)
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
        if client_authority:
            http["tls"]["clientcas"] = [str(authority.certificate)]
    config: dict[str, Any] = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
        "log": {"accesslog": {"disabled": False}, "level": "debug"},
    }
    if password:
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(_htpasswd(folder))}}
    if token is not None:
        config["auth"] = {"token": dict(token)}
    path = folder / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(path)], stdout=log, stderr=log)
    try:
        _await(process, folder / "log")
        yield Server(address, folder / "data", folder / "log")
    finally:
        process.terminate()
        process.wait(10)


def _htpasswd(folder: Path) -> Path:
    path = folder / "htpasswd"
    path.write_text(f"{USER}:{_BCRYPT}\n")
    return path


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it says that it listens."""
    deadline = time.monotonic() + _SECONDS
    while "listening on " not in (said := log.read_text(errors="replace")):
        assert process.poll() is None, said[-2000:]
        assert time.monotonic() < deadline, said[-2000:]
        time.sleep(0.05)


def fill(registry: Server, archive: Path, name: str, *, password: bool = False) -> None:
    """Has skopeo push an OCI archive as ``name``, ``REPOSITORY:TAG``."""
    credentials = [f"--dest-creds={USER}:{PASSWORD}"] if password else []
    target = f"docker://{registry.address}/{name}"
    skopeo("copy", "--dest-tls-verify=false", *credentials, f"oci-archive:{archive}", target)


def put_manifest(registry: Server, repository: str, target: str, value: Mapping[str, Any]) -> None:
    """Puts a document under a tag or a digest, as it is."""
    url = f"http://{registry.address}/v2/{repository}/manifests/{target}"
    headers = {"Content-Type": value["mediaType"]}
    data = json.dumps(value).encode()
    request = urllib.request.Request(url, data, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
        assert answer.status == 201


def skopeo(*arguments: str) -> str:
    """Its output. Fails the test when it fails."""
    done = subprocess.run(
        ["skopeo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
