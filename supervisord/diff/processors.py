"""Stream processors: programs that turn a blob of one media type into another, as containerd has
them (``[stream_processors]``). Here it is decided which ones a layer goes through; they run as
children of its unpack worker.

A program reads the blob on its standard input and writes the result to its standard output. It
finds the media type that it was chosen for in ``STREAM_PROCESSOR_MEDIATYPE``, and on descriptor 3
the payload that the client sent under its id (a serialized google.protobuf.Any), if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from google.protobuf.any_pb2 import Any

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument
from supervisord.contracts.typed import TypedValue

from .media import OCI, OCI_GZIP

MEDIA_TYPE = "STREAM_PROCESSOR_MEDIATYPE"
_LONGEST = 8
_KEYS = {"accepts": list, "returns": str, "path": str, "args": list, "env": list}
_OCICRYPT = "OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"


@dataclass(frozen=True, slots=True)
class Processor:
    """``accepts`` and ``returns`` are media types; ``path`` is looked up in PATH where it has no
    slash; ``env`` has NAME=VALUE for the program alone."""

    id: str
    accepts: Sequence[str]
    returns: str
    path: str
    args: Sequence[str] = ()
    env: Sequence[str] = ()

    def description(self, media_type: str) -> dict[str, object]:
        """What a worker needs to start it for a blob of that type."""
        pairs = (entry.partition("=") for entry in self.env)
        own = {name: value for name, _, value in pairs}
        return {
            "media_type": media_type,
            "path": self.path,
            "args": list(self.args),
            "env": {**os.environ, **own, MEDIA_TYPE: media_type},
        }


def _decoder(id: str, returns: str) -> Processor:
    keys = ("--decryption-keys-path", "/etc/containerd/ocicrypt/keys")
    return Processor(id, (f"{returns}+encrypted",), returns, "ctd-decoder", keys, (_OCICRYPT,))


BUILT_IN = (
    _decoder("io.containerd.ocicrypt.decoder.v1.tar", OCI),
    _decoder("io.containerd.ocicrypt.decoder.v1.tar.gzip", OCI_GZIP),
)
"""What containerd is configured with from the start: imgcrypt's decoder, if it is installed."""


def configured(table: Mapping[str, object]) -> tuple[Processor, ...]:
    """The processors of the table ``stream_processors``, before the built-in ones, which one of the
    same id replaces. Raises InvalidArgument."""
    own = tuple(_parsed(id, values) for id, values in table.items())
    return own + tuple(each for each in BUILT_IN if each.id not in table)


def _parsed(id: str, values: object) -> Processor:
    where = f"stream_processors.{id}"
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"{where}: must be a table")
    for key, value in values.items():
        if key not in _KEYS:
            raise InvalidArgument(f"{where}: unknown key {key}; known are {', '.join(_KEYS)}")
        items = value if isinstance(value, list) else [value]
        if not isinstance(value, _KEYS[key]) or not all(isinstance(item, str) for item in items):
            noun = "a list of strings" if _KEYS[key] is list else "a string"
            raise InvalidArgument(f"{where}.{key}: must be {noun}")
    for key in ("accepts", "returns", "path"):
        if not values.get(key):
            raise InvalidArgument(f"{where}.{key}: must not be empty")
    for entry in values.get("env", ()):
        if not entry.partition("=")[0] or "=" not in entry:
            raise InvalidArgument(f"{where}.env: must be NAME=VALUE: {entry!r}")
    return Processor(
        id,
        tuple(values["accepts"]),
        values["returns"],
        values["path"],
        tuple(values.get("args", ())),
        tuple(values.get("env", ())),
    )


def chain(
    processors: Sequence[Processor], media_type: str
) -> tuple[list[tuple[Processor, str]], str]:
    """The processors that a blob goes through, each with the type that it gets, and the type that
    comes out of the last. A plain tar ends it; what nobody accepts does, too.

    Raises FailedPrecondition where they go round in a circle."""
    found: list[tuple[Processor, str]] = []
    while (next := _accepting(processors, media_type)) is not None:
        if len(found) == _LONGEST:
            ids = " to ".join(each.id for each, _ in found)
            raise FailedPrecondition(f"stream_processors: more than {_LONGEST} in a row: {ids}")
        found.append((next, media_type))
        media_type = next.returns
        if media_type == OCI:
            break
    return found, media_type


def _accepting(processors: Sequence[Processor], media_type: str) -> Processor | None:
    return next((each for each in processors if media_type in each.accepts), None)


@contextmanager
def opened(payload: TypedValue) -> Iterator[int]:
    """A descriptor from which a processor reads its payload."""
    fd = os.memfd_create("payload")
    try:
        data = memoryview(Any(**asdict(payload)).SerializeToString())
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
