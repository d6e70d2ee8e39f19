"""Where fuzzing begins: small valid inputs of each target, made here."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from collections.abc import Sequence

import zstandard

from tests.unit.unpack.archives import archive, folder, hardlink, member, symlink

_SPARSE = {"GNU.sparse.map": "0,2,8,3", "GNU.sparse.size": "11", "GNU.sparse.name": "s"}
_OLD = {"GNU.sparse.numblocks": "1", "GNU.sparse.offset": "4", "GNU.sparse.numbytes": "5"}
_NEW = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
_XATTRS = {"SCHILY.xattr.user.a": "1", "LIBARCHIVE.xattr.user.b": "MQ==", "mtime": "-1.5"}


def old_sparse() -> bytes:
    """A sparse file in the old GNU form, with one extension block."""
    info, _ = member("old", b"12345")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[386:410] = b"%011o\0%011o\0" % (512, 2)
    block[482:495] = b"\1%011o\0" % 2048
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    extension = b"%011o\0%011o\0" % (1024, 3)
    return bytes(block) + extension.ljust(512, b"\0") + b"12345".ljust(512, b"\0")


def archives() -> list[bytes]:
    """One for each format and each kind of entry."""
    entries = (
        *(folder("d"), member("d/f", b"contents" * 10), symlink("d/s", "f"), hardlink("h", "d/f")),
        *(member("n", type=tarfile.CHRTYPE, devmajor=1), member("x" * 120, b"1")),
    )
    plain = [
        archive(*entries, format=format)[: 512 * 16]
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    plain.append(archive(*entries[:5], format=tarfile.USTAR_FORMAT)[: 512 * 8])
    new = (b"1\n4\n5\n".ljust(512, b"\0")) + b"12345"
    return [
        *plain,
        archive(member("s", b"12345", pax_headers=_SPARSE))[:2560],
        archive(member("s", b"12345", pax_headers={**_OLD, "GNU.sparse.size": "9"}))[:2560],
        archive(member("s", new, pax_headers=_NEW))[:3072],
        archive(member("f", b"1", pax_headers=_XATTRS))[:2560],
        archive(member("f", uid=1 << 40), format=tarfile.GNU_FORMAT)[:1024],
        old_sparse(),
    ]


def _gzips() -> list[bytes]:
    header = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\0abc" + b"name\0" + b"note\0"
    crc = zlib.crc32(header).to_bytes(4, "little")[:2]
    body = gzip.compress(b"data", mtime=0)[10:]
    whole = [gzip.compress(b"a" * 100, mtime=0), gzip.compress(b"", mtime=0), header + crc + body]
    return [*whole, whole[0] + whole[1], whole[0] + bytes(7), whole[1] + bytes(3) + whole[0]]


def _zstds() -> list[bytes]:
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(b"a" * 100)
    skipped = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    return [checked, checked + skipped, checked * 2, zstandard.ZstdCompressor().compress(b"")]


def of(target: str) -> Sequence[bytes]:
    """The seeds of a target, as it takes them."""
    match target:
        case "block":
            return [data[:512] for data in archives()]
        case "records":
            return [b"20 path=some/file\nab\n", b"30 mtime=1700000000.123456789\n", b"6 a=b\n"]
        case "numbers":
            return [b"0000644\0", b"\x80\0\0\0\0\0\0\0\0\0\1\0", b"   755 \0", b"-1.5", b"12.123"]
        case "names":
            return [b"a/b/../c", b"./a//b/", b"/../../etc/passwd", b"d/.wh.x"]
        case "archive":
            return [b"\x10" + data for data in archives()]
        case "gunzip":
            return [data[3:] for data in _gzips()]
        case "unzstd":
            return [data[4:] for data in _zstds()]
    raise KeyError(target)
