"""A tar stream read as it comes: names, sizes and bytes of regular files, and links.

For archives that hold blobs; layers are read elsewhere. Understood are ustar, GNU's long names and
PAX headers (path, linkpath, size); sparse files are refused. Headers have limits, bodies are never
held in memory (POSIX.1-2001 pax; GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from supervisord.contracts.errors import InvalidArgument

_BLOCK = 512
_MOST_HEADER = 1 << 20
_LARGEST_NAME = 4096
_PIECE = 1 << 20
_FILE = (b"0", b"\0", b"7")
_REGULAR, _SYMLINK, _HARDLINK = "file", "symlink", "hardlink"


@dataclass(frozen=True, slots=True)
class Entry:
    """A member: ``kind`` is ``file``, ``symlink``, ``hardlink``, or "" for anything else."""

    name: str
    kind: str
    size: int = 0
    link: str = ""


class TarStream:
    """Members of a stream in order: ``next``, then ``body`` of a file, then ``next`` again."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    async def next(self) -> Entry | None:
        """The next member, None at the end; what is left of the last body is passed over.

        Raises InvalidArgument for what is no tar, or breaks its limits."""
        async for _ in self.body():
            pass
        overrides: dict[str, str] = {}
        while True:
            header = await self._exactly(_BLOCK, may_end=True)
            if not header.strip(b"\0"):
                return None  # the end, or what is padded to it
            _check(header)
            size = _number(header[124:136])
            kind = header[156:157]
            if kind in (b"L", b"K", b"x", b"g"):
                data = await self._header_data(size)
                if kind == b"L":
                    overrides["path"] = _text(data)
                elif kind == b"K":
                    overrides["linkpath"] = _text(data)
                elif kind == b"x":
                    overrides.update(_pax(data))
                continue
            return self._entry(header, kind, size, overrides)

    async def body(self) -> AsyncIterator[bytes]:
        """The bytes of the member that ``next`` answered last."""
        while self._left:
            if not self._buffer and not await self._more():
                raise InvalidArgument("archive: ends within a file")
            piece = bytes(self._buffer[: min(self._left, _PIECE)])
            del self._buffer[: len(piece)]
            self._left -= len(piece)
            yield piece
        if self._padding:
            await self._exactly(self._padding)
            self._padding = 0

    async def drain(self) -> None:
        """Passes over what follows the end, so that the sender is not cut off."""
        self._buffer.clear()
        async for _ in self._chunks:
            pass

    def _entry(self, header: bytes, kind: bytes, size: int, overrides: dict[str, str]) -> Entry:
        prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
        name = _text(header[:100])
        name = overrides.get("path") or (f"{prefix}/{name}" if prefix else name)
        if "size" in overrides:
            text = overrides["size"]
            if not text.isascii() or not text.isdecimal() or len(text) > 18:
                raise InvalidArgument(f"archive: size {text[:30]!r} of {name[:100]!r}")
            size = int(text)
        if kind == b"S" or any(key.startswith("GNU.sparse.") for key in overrides):
            raise InvalidArgument(f"archive: {name[:100]!r}: sparse files are not read")
        if len(name) > _LARGEST_NAME:
            raise InvalidArgument(f"archive: a name of {len(name)} characters")
        link = overrides.get("linkpath") or _text(header[157:257])
        if kind in (b"1", b"2"):
            return Entry(name, _HARDLINK if kind == b"1" else _SYMLINK, 0, link)
        if kind not in _FILE or name.endswith("/"):
            size = size if kind in _FILE else 0
            self._expect(size)
            return Entry(name, "", size)
        self._expect(size)
        return Entry(name, _REGULAR, size)

    def _expect(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK

    async def _header_data(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise InvalidArgument(f"archive: a header of {size} bytes, more than {_MOST_HEADER}")
        return (await self._exactly(size + -size % _BLOCK))[:size]

    async def _exactly(self, size: int, *, may_end: bool = False) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                if may_end and not self._buffer:
                    return b""
                raise InvalidArgument("archive: ends in the middle")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _more(self) -> bool:
        async for chunk in self._chunks:
            if chunk:
                self._buffer += chunk
                return True
        return False


def _check(header: bytes) -> None:
    told = header[148:156].strip(b"\0 ")
    try:
        wanted = int(told or b"0", 8)
    except ValueError:
        wanted = -1
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != wanted:
        raise InvalidArgument("archive: is no tar: the checksum of a header does not match")


def _number(field: bytes) -> int:
    """Octal, or GNU's base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >= 1 << 62:
            raise InvalidArgument("archive: a negative or enormous size")
        return value
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise InvalidArgument(f"archive: {field!r} is no size") from None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE\\n``."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or len(length) > 7:
            raise InvalidArgument("archive: a PAX record without its length")
        size = int(length)
        record = data[len(length) + 1 : size]
        key, equals, value = record.partition(b"=")
        if size > len(data) or not equals or not value.endswith(b"\n"):
            raise InvalidArgument("archive: a PAX record that breaks its length")
        found[key.decode(errors="surrogateescape")] = value[:-1].decode(errors="surrogateescape")
        data = data[size:]
    return found
