"""Archives made by the standard library, which knows all tar formats but sparse files."""

from __future__ import annotations

import io
import tarfile
from typing import Any


def member(
    name: str, data: bytes = b"", type: bytes = tarfile.REGTYPE, **attributes: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry; ``attributes`` are those of TarInfo, ``pax_headers`` among them."""
    info = tarfile.TarInfo(name)
    info.type = type
    info.size = len(data)
    info.mode = 0o755 if type == tarfile.DIRTYPE else 0o644
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **attributes)


def symlink(name: str, target: str, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target, **attributes)


def hardlink(name: str, target: str, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target, **attributes)


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of the members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
