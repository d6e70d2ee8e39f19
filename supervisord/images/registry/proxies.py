"""Proxies as the environment names them, by the rules that containerd has from Go (httpproxy).

HTTP_PROXY is for http, HTTPS_PROXY for https, each also in lower case; loopback is never asked
through one. NO_PROXY lists, with commas, who is not either: ``*`` for all, addresses, networks
(10.0.0.0/8), ``example.com`` (with all below it), ``.example.com`` (only what is below it), each
but a network with a ``:PORT`` to be meant on that port alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from supervisord.contracts.errors import InvalidArgument

from ..hosts.defaults import is_loopback

_PORTS = {"http": 80, "https": 443}
_KINDS = ("http", "https")


@dataclass(frozen=True, slots=True)
class _Exception:
    """One of NO_PROXY; ``name`` with a dot before it is for what is below it alone."""

    name: str = ""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int = 0

    def holds(self, host: str, port: int) -> bool:
        if self.port not in (0, port):
            return False
        if self.network is not None:
            try:
                return ipaddress.ip_address(host) in self.network
            except ValueError:
                return False
        if self.name.startswith("."):
            return host.endswith(self.name)
        return self.name in ("*", host) or host.endswith(f".{self.name}")


class Proxies:
    """Who is asked through which proxy."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises InvalidArgument, which names the variable and the rule."""
        self._by_scheme = {scheme: _proxy(environment, scheme) for scheme in _KINDS}
        text = _first(environment, "NO_PROXY")
        self._exceptions = [_exception(one) for one in text.split(",") if one.strip()]

    def of(self, url: str) -> str | None:
        """The URL of the proxy, which may have a user and a password; None for none."""
        parts = urlsplit(url)
        proxy = self._by_scheme.get(parts.scheme, "")
        host = (parts.hostname or "").rstrip(".")
        if not proxy or is_loopback(parts.netloc.rpartition("@")[2]):
            return None
        port = parts.port or _PORTS[parts.scheme]
        if any(exception.holds(host, port) for exception in self._exceptions):
            return None
        return proxy


def from_environment() -> Proxies:
    """Of this process. Raises InvalidArgument."""
    return Proxies(os.environ)


def shown(proxy: str) -> str:
    """Without the password."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def _first(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower()) or ""


def _proxy(environment: Mapping[str, str], scheme: str) -> str:
    name = f"{scheme.upper()}_PROXY"
    value = _first(environment, name).strip()
    if not value:
        return ""
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise InvalidArgument(f"{name}: is no URL of a proxy: {error}") from error
    if parts.scheme not in _KINDS or not parts.hostname:
        raise InvalidArgument(
            f"{name}: must be http(s)://[USER:PASSWORD@]HOST[:PORT]; it begins with"
            f" {parts.scheme}://"
        )
    return url


def _exception(text: str) -> _Exception:
    value = text.strip().lower()
    try:
        return _Exception(network=ipaddress.ip_network(value.strip("[]"), strict=False))
    except ValueError:
        host, port = _split(value)
    try:
        return _Exception(network=ipaddress.ip_network(host), port=port)
    except ValueError:
        return _Exception(host.removeprefix("*") if host.startswith("*.") else host, None, port)


def _split(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return value.strip("[]"), 0
