"""An OCI image made from the machine's static busybox, in pure Python, without any network.

``demo`` imports it, and tests use it as their smallest real image. ``build`` writes an OCI layout
tar; the same busybox gives the same bytes each time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from .errors import CliError

DEFAULT_NAME = "docker.io/library/busybox:demo"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
_ACCOUNTS = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "demo:x:1000:1000:demo:/home/demo:/bin/sh\n"
)
_GROUPS = "root:x:0:\ndaemon:x:1:\nstaff:x:50:demo\ndemo:x:1000:\nwheel:x:10:root,demo\n"


def build(target: Path, name: str = DEFAULT_NAME) -> Path:
    """Writes the image as an OCI layout tar to ``target``. Raises CliError without busybox."""
    busybox = _static_busybox()
    layer = _layer(busybox)
    packed = gzip.compress(layer, compresslevel=1, mtime=0)
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            "history": [{"created_by": "busybox"}],
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar+gzip", packed)],
        }
    )
    entry = _descriptor(f"{kind}.manifest.v1+json", manifest)
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = _json({"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": [entry]})
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", index)
        for blob in (manifest, config, packed):
            _add(archive, "blobs/sha256/" + _digest(blob).partition(":")[2], blob)
    return target


def _static_busybox() -> Path:
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin:/sbin:/usr/sbin")
    if found is None:
        raise CliError("the machine has no busybox: apt-get install busybox-static")
    with open(found, "rb") as file:
        head = file.read(4096)
    # A dynamic executable names its loader in the first page.
    if b"/ld-linux" in head or b"/ld-musl" in head:
        raise CliError(f"{found} is not static: apt-get install busybox-static")
    return Path(found)


def _layer(busybox: Path) -> bytes:
    """The uncompressed root filesystem: busybox, its applets as links, a few files."""
    names = subprocess.run([busybox, "--list"], capture_output=True, check=True, timeout=10)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in (
            "bin",
            "dev",
            "etc",
            "home",
            "home/demo",
            "proc",
            "root",
            "sys",
            "usr",
            "var",
        ):
            archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
        archive.addfile(_entry("tmp", tarfile.DIRTYPE, 0o1777))
        _add(archive, "bin/busybox", busybox.read_bytes(), 0o755)
        for applet in sorted(set(names.stdout.decode().split()) - {"busybox"}):
            link = _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            archive.addfile(link)
        _add(archive, "etc/passwd", _ACCOUNTS.encode())
        _add(archive, "etc/group", _GROUPS.encode())
    return buffer.getvalue()


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
