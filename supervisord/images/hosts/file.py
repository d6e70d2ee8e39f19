"""``hosts.toml``: the mirrors of a registry in order, and the registry itself last.

The keys are containerd's (docs/hosts.md). A file that cannot be understood is an error which names
it: to go on without would ask a server that the file was written to avoid.
"""

from __future__ import annotations

import posixpath
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from supervisord.contracts.durations import seconds
from supervisord.contracts.errors import InvalidArgument

from .defaults import complete, with_fallback
from .endpoint import Capability, Endpoint, Tls

_CAPABILITIES = {
    "pull": Capability.PULL,
    "resolve": Capability.RESOLVE,
    "push": Capability.PUSH,
    "referrers": Capability.REFERRERS,
}
_KEYS = {
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
}


def load(path: Path, registry: str, scheme: str = "") -> list[Endpoint]:
    """The endpoints of a registry. Raises InvalidArgument (with file and key) and OSError."""
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    try:
        return _endpoints(table, path.parent, registry, scheme)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from error


def _endpoints(
    table: Mapping[str, Any], folder: Path, registry: str, scheme: str
) -> list[Endpoint]:
    hosts = table.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(host, dict) for host in hosts.values()):
        raise InvalidArgument('host: must be tables, [host."https://mirror.example"]')
    found = []
    for url, mirror in hosts.items():
        if not url:
            raise InvalidArgument('host."": must be the URL of a server')
        found.append(_Table(f'host."{url}".', mirror, folder).endpoint(url))
    own = {key: value for key, value in table.items() if key not in ("host", "server")}
    server = table.get("server", "")
    if not isinstance(server, str):
        raise InvalidArgument("server: must be a string")
    last = _Table("", own, folder)
    if server:
        return [*found, last.endpoint(server)]
    # Without a server the registry itself is the last one, with its usual path and abilities.
    return [*found, complete(registry, scheme, last.tls())]


class _Table:
    """One table of the file; ``place`` is its name before a key in messages."""

    def __init__(self, place: str, table: Mapping[str, Any], folder: Path) -> None:
        self._place = place
        self._table = table
        self._folder = folder
        for key in table:
            if key not in _KEYS:
                raise self._wrong(key, f"is unknown; known are {', '.join(sorted(_KEYS))}")

    def endpoint(self, url: str) -> Endpoint:
        text = url if "://" in url else f"https://{url}"
        try:
            parts = urlsplit(text)
            _ = parts.port  # raises where it is no number
        except ValueError as error:
            raise self._wrong("", f"{url!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise self._wrong("", f"{url!r} must be http(s)://HOST[:PORT][/PATH]")
        return with_fallback(
            Endpoint(
                parts.netloc,
                parts.scheme,
                self._path(parts.path),
                self._capabilities(),
                self.tls(),
                self._header(),
                self._dial_seconds(),
            )
        )

    def tls(self) -> Tls:
        skip = self._table.get("skip_verify")
        if skip is not None and not isinstance(skip, bool):
            raise self._wrong("skip_verify", "must be true or false")
        return Tls(self._files("ca"), self._pairs(), skip)

    def _path(self, path: str) -> str:
        override = self._table.get("override_path", False)
        if not isinstance(override, bool):
            raise self._wrong("override_path", "must be true or false")
        clean = posixpath.normpath(path).strip("/") if path else ""
        clean = f"/{clean}" if clean else ""
        return clean if override or clean.endswith("/v2") else f"{clean}/v2"

    def _capabilities(self) -> Capability:
        words = self._strings("capabilities", self._table.get("capabilities", []))
        found = Capability(0)
        for word in words:
            if word.lower() not in _CAPABILITIES:
                known = ", ".join(_CAPABILITIES)
                raise self._wrong("capabilities", f"{word!r} is not one of {known}")
            found |= _CAPABILITIES[word.lower()]
        return found or Capability.ALL

    def _files(self, key: str) -> tuple[str, ...]:
        value = self._table.get(key, [])
        return tuple(self._path_of(name) for name in self._strings(key, value, alone=True))

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        value = self._table.get("client", [])
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise self._wrong("client", "must be a file, files, or pairs of files")
        pairs = []
        for one in value:
            files = self._strings("client", one, alone=True)
            if len(files) not in (1, 2) or not files[0]:
                raise self._wrong("client", "must be pairs of a certificate and a key")
            # A key that is "" or not named is in the certificate's file.
            pairs.append((self._path_of(files[0]), self._path_of(files[-1] or files[0])))
        return tuple(pairs)

    def _header(self) -> Mapping[str, Sequence[str]]:
        table = self._table.get("header", {})
        if not isinstance(table, dict):
            raise self._wrong("header", "must be a table of strings")
        found = {}
        for name, value in table.items():
            values = self._strings(f"header.{name}", value, alone=True)
            if any(mark in text for text in (name, *values) for mark in "\r\n\0"):
                raise self._wrong(f"header.{name}", "must be one line")
            found[name] = values
        return found

    def _dial_seconds(self) -> float | None:
        text = self._table.get("dial_timeout", "")
        if not isinstance(text, str):
            raise self._wrong("dial_timeout", "must be a duration such as 3s")
        return seconds(text, f"{self._place}dial_timeout") if text else None

    def _strings(self, key: str, value: object, *, alone: bool = False) -> Sequence[str]:
        if alone and isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, "must be a list of strings" + " or a string" * alone)
        return tuple(value)

    def _path_of(self, name: str) -> str:
        return str(self._folder / name)

    def _wrong(self, key: str, rule: str) -> InvalidArgument:
        return InvalidArgument(f"{(self._place + key).rstrip('.') or 'server'}: {rule}")
