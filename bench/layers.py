"""The layers that cases use, made here: a busybox root, and a larger tree to unpack."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import tarfile
from pathlib import Path

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_LINKS = ("cat", "echo", "ls", "sh", "sleep", "true")


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _folder(tar: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry)


def busybox() -> bytes:
    """An uncompressed layer with the machine's static busybox in it."""
    binary = shutil.which("busybox")
    if binary is None:
        raise FileNotFoundError("there is no busybox on the path")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            _folder(tar, name)
        _add(tar, "bin/busybox", Path(binary).read_bytes(), 0o755)
        for name in _LINKS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def tree(mebibytes: int, files: int, seed: int = 1) -> bytes:
    """A gzip layer with that many files in folders of a hundred; the same bytes every time.

    Half of each file is noise and half repeats, so that it shrinks about as far as the
    programs and texts of an ordinary image do."""
    source = random.Random(seed)  # noqa: S311 - the same bytes every time
    each = (mebibytes << 20) // files
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for number in range(files):
            if number % 100 == 0:
                _folder(tar, f"d{number // 100}")
            size = int(each * source.choice((0.1, 0.3, 0.6, 1.0, 3.0)))
            noise = source.randbytes(size // 2)
            _add(tar, f"d{number // 100}/f{number}", noise + noise[:64] * (size // 128))
    return out.getvalue()
