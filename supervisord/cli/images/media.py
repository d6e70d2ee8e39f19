"""Media types, descriptors and platforms: the nouns of the OCI image specification."""

from __future__ import annotations

import platform as machine
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CliError

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"

INDEX = f"{OCI}.index.v1+json"
MANIFEST = f"{OCI}.manifest.v1+json"
DOCKER_LIST = f"{DOCKER}.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = f"{DOCKER}.distribution.manifest.v2+json"
DOCKER_CONFIG = f"{DOCKER}.container.image.v1+json"
DOCKER_LAYER = f"{DOCKER}.image.rootfs.diff.tar"

INDEX_TYPES = frozenset((INDEX, DOCKER_LIST))
MANIFEST_TYPES = frozenset((MANIFEST, DOCKER_MANIFEST))
CONFIG_TYPES = frozenset((f"{OCI}.config.v1+json", DOCKER_CONFIG))

NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z|sha512:[0-9a-f]{128}\Z|sha384:[0-9a-f]{96}\Z")
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
}
_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]``; the variant that goes without saying is empty."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def matches(self, other: Platform) -> bool:
        """Whether something for ``other`` runs here."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        default = _VARIANTS.get(self.architecture, "")
        return (self.variant or default) == (other.variant or default)


def here() -> Platform:
    """The platform of this machine."""
    kind = machine.machine()
    return Platform("linux", _ARCHITECTURES.get(kind, kind))


def parse_platform(text: str) -> Platform:
    """``linux/amd64``, ``linux/arm/v7``, or an architecture alone. Raises CliError."""
    parts = text.split("/")
    if not all(parts) or len(parts) > 3:
        raise CliError(f"platform {text!r} is not of the form os/architecture[/variant]")
    if len(parts) == 1:
        return Platform("linux", _ARCHITECTURES.get(parts[0], parts[0]))
    os, architecture = parts[0], _ARCHITECTURES.get(parts[1], parts[1])
    variant = parts[2] if len(parts) == 3 else ""
    return Platform(os, architecture, "" if variant == _VARIANTS.get(architecture) else variant)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says about a blob."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None

    @property
    def hex(self) -> str:
        return self.digest.partition(":")[2]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        return self.media_type in MANIFEST_TYPES

    @property
    def is_layer(self) -> bool:
        return ".layer." in self.media_type or ".rootfs." in self.media_type

    def to_json(self) -> dict[str, Any]:
        """In the form of the image specification."""
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
            if self.platform.variant:
                value["platform"]["variant"] = self.platform.variant
        return value


def check_digest(value: object, where: str) -> str:
    """``value`` if it is a digest. Raises CliError naming where it stood."""
    if not isinstance(value, str) or _DIGEST.match(value) is None:
        raise CliError(f"{where}: {value!r} is not a digest")
    return value


def descriptor_of(value: object, where: str) -> Descriptor:
    """A descriptor from untrusted JSON. Raises CliError naming where it stood."""
    if not isinstance(value, dict):
        raise CliError(f"{where}: not a descriptor")
    size, kind = value.get("size"), value.get("mediaType", "")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise CliError(f"{where}: size {size!r} is not a number of bytes")
    if not isinstance(kind, str):
        raise CliError(f"{where}: mediaType is not text")
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(
        isinstance(item, str) for item in annotations.values()
    ):
        raise CliError(f"{where}: annotations are not text by name")
    platform = _platform_of(value.get("platform"), where)
    return Descriptor(kind, check_digest(value.get("digest"), where), size, annotations, platform)


def _platform_of(value: object, where: str) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CliError(f"{where}: platform is not an object")
    parts = [value.get(name) or "" for name in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts):
        raise CliError(f"{where}: platform is not text")
    architecture = parts[1]
    variant = "" if parts[2] == _VARIANTS.get(architecture) else parts[2]
    return Platform(parts[0], architecture, variant)
