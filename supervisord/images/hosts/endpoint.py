"""An endpoint: one server that is asked for the images of a registry, and how."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class Capability(enum.Flag):
    """What a server is good for. One that may PULL only is not trusted to say what a tag is."""

    PULL = enum.auto()
    RESOLVE = enum.auto()
    PUSH = enum.auto()
    REFERRERS = enum.auto()
    ALL = PULL | RESOLVE | PUSH | REFERRERS


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server is known, and we to it. ``ca``: files with further authorities; ``client``:
    files of a certificate and of its key, maybe the same; ``skip_verify`` believes anyone."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool | None = None

    def __bool__(self) -> bool:
        return bool(self.ca or self.client or self.skip_verify is not None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``scheme``://``host````path`` is the root of its API. ``dial_seconds`` None is the default.

    With ``falls_back`` it is tried with https first, and with http where no TLS is spoken."""

    host: str
    scheme: str = "https"
    path: str = "/v2"
    capabilities: Capability = Capability.ALL
    tls: Tls = field(default_factory=Tls)
    header: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dial_seconds: float | None = None
    falls_back: bool = False

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken to it, as far as is known."""
        return self.scheme == "https"

    def can(self, capability: Capability) -> bool:
        return capability in self.capabilities

    def stands_for(self, registry: str) -> bool:
        """Whether it serves that registry's images under another name, so has to be told."""
        return registry != self.host and (registry, self.host) != ("docker.io", DOCKER)


DOCKER = "registry-1.docker.io"
"""Where the images of docker.io are."""
