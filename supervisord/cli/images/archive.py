"""Reading image archives: a tar stream, maybe compressed, from a file that may be hostile.

``members`` yields the regular files of the stream in order, each with a reader that is good until
the next one is asked for. Nothing is written to disk, so a name can do no harm beyond confusing
the caller; names are cleaned all the same, and links that leave the archive are refused.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from ..errors import CliError

MAX_MEMBERS = 100_000
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: a regular file with its bytes, or a link with the name that it points at."""

    name: str
    size: int = 0
    data: BinaryIO | None = None
    link: str = ""


def open_stream(raw: BinaryIO) -> BinaryIO:
    """The tar stream inside ``raw``, decompressed when it begins like gzip, zstd, xz or bzip2."""
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(
        cast(io.RawIOBase, raw), _BUFFER
    )  # fmt: skip
    head = buffered.peek(6)[:6]
    if head[:2] == b"\x1f\x8b":
        from isal import igzip

        return cast(BinaryIO, igzip.IGzipFile(fileobj=buffered))  # type: ignore[no-untyped-call]
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return cast(
            BinaryIO,
            zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True),
        )
    if head[:6] == b"\xfd7zXZ\0":
        import lzma

        return cast(BinaryIO, lzma.open(buffered))
    if head[:3] == b"BZh":
        import bz2

        return cast(BinaryIO, bz2.open(buffered))
    return buffered


@contextmanager
def readable() -> Iterator[None]:
    """Turns what the tar reader and the decompressors raise into one CliError."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise CliError(f"not a readable image archive: {error}") from None
    except Exception as error:
        # These classes live in modules that are imported only for such a stream; bzip2 and gzip
        # complain with an OSError that no system call caused.
        bent = type(error).__name__ in ("ZstdError", "LZMAError", "IsalError")
        if bent or (isinstance(error, OSError) and error.errno is None):
            raise CliError(f"not a readable image archive: {error}") from None
        raise


def members(stream: BinaryIO) -> Iterator[Member]:
    """Files and links in order; run inside ``readable``. Raises CliError for a hostile name."""
    seen = 0
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=_BUFFER) as archive:
        for entry in archive:
            seen += 1
            if seen > MAX_MEMBERS:
                raise CliError(f"the archive has more than {MAX_MEMBERS} members")
            # tarfile keeps every header it has seen; a stream needs none of them.
            archive.members = []  # type: ignore[attr-defined]
            name = clean_name(entry.name)
            if entry.issym():
                yield Member(name, link=_link(posixpath.dirname(name), entry.linkname))
            elif entry.islnk():
                yield Member(name, link=_link("", entry.linkname))
            elif entry.isreg():
                yield Member(name, entry.size, cast(BinaryIO, archive.extractfile(entry)))


def clean_name(name: str) -> str:
    """A member's name without ``./`` and doubled slashes. Raises CliError when it points outside
    of the archive."""
    cleaned = posixpath.normpath(name.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../") or "\0" in name:
        raise CliError(f"archive member {name!r} points outside of the archive")
    return cleaned


def _link(folder: str, target: str) -> str:
    return clean_name(posixpath.join(folder, target))
