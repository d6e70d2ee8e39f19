"""OCI images for the tests, built in pure Python from the machine's static busybox.

A layer is a list of members, an image a list of layers; both are written with fixed times, so
that the same image always has the same digests. Nothing here knows a daemon.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EPOCH = 1_600_000_000
APPLETS = (
    "ash awk basename cat chmod chown cp cut date dd df dirname du echo env false find grep head "
    "hostname id kill ln ls md5sum mkdir mknod mount mv nproc od ps pwd readlink realpath rm "
    "rmdir seq sh sha256sum sleep sort stat stty sync tail tee test touch tr true tty umount "
    "uname wc whoami xargs yes"
).split()


@dataclass(frozen=True)
class Member:
    """One tar member: a file with ``data``, or another type with a link name or device."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = EPOCH
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)

    def header(self) -> tarfile.TarInfo:
        """The member's tar header."""
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.mode = self.type, self.link, self.mode
        info.uid, info.gid, info.mtime = self.uid, self.gid, self.mtime
        info.devmajor, info.devminor = self.device
        info.pax_headers = dict(self.pax)
        info.size = len(self.data)
        return info


def folder(name: str, mode: int = 0o755, **more: Any) -> Member:
    """A directory."""
    return Member(name, type=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Member:
    """A symbolic link."""
    return Member(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str, **more: Any) -> Member:
    """A hard link to an earlier member."""
    return Member(name, type=tarfile.LNKTYPE, link=target, **more)


def tar(members: Sequence[Member]) -> bytes:
    """The members as a PAX tar stream."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member.header(), io.BytesIO(member.data))
    return out.getvalue()


def sha256(data: bytes) -> str:
    """``sha256:HEX`` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def compress(data: bytes, kind: str) -> tuple[str, bytes]:
    """The media type and the blob of a layer: ``gzip``, ``zstd`` or ``none``."""
    if kind == "gzip":
        return LAYER + "+gzip", gzip.compress(data, compresslevel=1, mtime=0)
    if kind == "zstd":
        return LAYER + "+zstd", zstandard.ZstdCompressor(level=1).compress(data)
    return LAYER, data


@dataclass
class Image:
    """An image: its blobs by digest, and what tests want to know about it."""

    blobs: dict[str, bytes]
    manifest: str
    config: str
    layers: list[str]
    diff_ids: list[str]
    media_types: list[str]

    @property
    def chain_ids(self) -> list[str]:
        """The chain-id after each layer (OCI image specification, config, ChainID)."""
        chain = [self.diff_ids[0]]
        for diff_id in self.diff_ids[1:]:
            chain.append(sha256(f"{chain[-1]} {diff_id}".encode()))
        return chain

    def write(self, path: Path, name: str) -> Path:
        """Writes an OCI layout tar whose index names the image ``name``."""
        target = {
            "mediaType": MANIFEST,
            "digest": self.manifest,
            "size": len(self.blobs[self.manifest]),
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rpartition(":")[2],
            },
        }
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]}
        members = [
            Member("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode()),
            Member("index.json", json.dumps(index).encode()),
            folder("blobs"),
            folder("blobs/sha256"),
        ]
        members += [
            Member(f"blobs/sha256/{digest[7:]}", data) for digest, data in self.blobs.items()
        ]
        path.write_bytes(tar(members))
        return path


def build(
    layers: Sequence[Sequence[Member] | bytes],
    compressions: Sequence[str] = (),
    config: dict[str, Any] | None = None,
) -> Image:
    """An image of those layers (members, or the bytes of an archive); ``config`` goes into the
    image config's ``config`` object."""
    blobs: dict[str, bytes] = {}
    image = Image(blobs, "", "", [], [], [])
    descriptors = []
    for number, members in enumerate(layers):
        plain = members if isinstance(members, bytes) else tar(members)
        kind = compressions[number] if number < len(compressions) else "gzip"
        media_type, blob = compress(plain, kind)
        digest = sha256(blob)
        blobs[digest] = blob
        image.layers.append(digest)
        image.media_types.append(media_type)
        image.diff_ids.append(sha256(plain))
        descriptors.append({"mediaType": media_type, "digest": digest, "size": len(blob)})
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": image.diff_ids},
        "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
    }
    encoded = json.dumps(document).encode()
    image.config = sha256(encoded)
    blobs[image.config] = encoded
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": image.config, "size": len(encoded)},
        "layers": descriptors,
    }
    encoded = json.dumps(manifest).encode()
    image.manifest = sha256(encoded)
    blobs[image.manifest] = encoded
    return image


def busybox_layer() -> list[Member]:
    """A root file system with busybox and its applets as links."""
    binary = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    folders = [folder(name) for name in ("bin", "dev", "etc", "proc", "root", "sys", "var")]
    return [
        *folders,
        folder("tmp", 0o1777),
        Member("bin/busybox", binary, mode=0o755),
        *(symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
        Member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
        Member("etc/group", b"root:x:0:\nuser:x:1000:\n"),
    ]


def second_layer() -> list[Member]:
    """Files of every kind, some of which the third layer takes away."""
    return [
        folder("data"),
        folder("data/opaque"),
        Member("data/opaque/below", b"below\n"),
        Member("data/gone", b"gone\n"),
        Member("data/kept", b"kept\n", mode=0o640, uid=1000, gid=1000),
        Member("data/replaced", b"first\n"),
        hardlink("data/linked", "data/kept", mode=0o640, uid=1000, gid=1000),
        symlink("data/soft", "kept"),
        Member("data/setuid", b"x", mode=0o4755),
        Member("data/fifo", type=tarfile.FIFOTYPE, mode=0o600),
        Member("data/null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        Member("data/" + "long/" * 30 + "name", b"long\n"),
        Member("data/übel", "grüß\n".encode()),
    ]


def third_layer() -> list[Member]:
    """Whiteouts: of a file, and of everything below in one folder."""
    return [
        folder("data"),
        Member("data/.wh.gone"),
        folder("data/opaque"),
        Member("data/opaque/.wh..wh..opq"),
        Member("data/opaque/above", b"above\n"),
        Member("data/replaced", b"second\n"),
    ]


def busybox_image() -> Image:
    """The image most tests run: three gzip layers over busybox, with whiteouts."""
    return build(
        [busybox_layer(), second_layer(), third_layer()],
        config={"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/tmp"},
    )
