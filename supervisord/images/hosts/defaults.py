"""The endpoint of a registry that nothing is configured for, as containerd has it.

docker.io is served by another name. On loopback a registry is allowed to have no certificate that
anybody knows, and on a port that is neither 80 nor 443 to speak plain HTTP.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from .endpoint import DOCKER, Endpoint, Tls

_HTTPS, _HTTP = "443", "80"


def complete(registry: str, scheme: str = "", tls: Tls | None = None) -> Endpoint:
    """The registry itself. ``scheme`` is for all but docker.io, "" for what is usual; ``tls`` is
    what a folder with certificates says."""
    tls = tls or Tls()
    if registry == "docker.io":
        return Endpoint(DOCKER, tls=tls)
    if not is_loopback(registry):
        return with_fallback(Endpoint(registry, scheme or "https", tls=tls))
    port = port_of(registry)
    if port != _HTTP and tls.skip_verify is None:
        tls = replace(tls, skip_verify=True)
    if not scheme:
        scheme = "https" if port in ("", _HTTPS) else "http"
    return with_fallback(Endpoint(registry, scheme, tls=tls))


def with_fallback(endpoint: Endpoint) -> Endpoint:
    """One with plain HTTP and yet with TLS configured is tried with TLS first, but for port 80."""
    if endpoint.scheme == "http" and endpoint.tls and port_of(endpoint.host) != _HTTP:
        return replace(endpoint, scheme="https", falls_back=True)
    return endpoint


def port_of(host: str) -> str:
    """The port of ``HOST[:PORT]``, "" for none."""
    return host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""


def is_loopback(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is this machine by its name or its address."""
    port = port_of(host)
    name = host.removesuffix(f":{port}").strip("[]") if port else host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
