"""Platforms: for which operating system and processor a manifest is, and which fits best here."""

from __future__ import annotations

import platform as machine
from dataclasses import dataclass

from supervisord.contracts.errors import InvalidArgument

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
    "i686": "386",
}
_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_OF_MACHINE = {"armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"), "armv8l": ("arm", "v8")}


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]``, each as the Go toolchain names it."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @property
    def level(self) -> int:
        """The variant as a number, where variants are levels: each runs what is for lower ones."""
        text = self.variant or _VARIANTS.get(self.architecture, "")
        number = text.removeprefix("v").partition(".")[0]
        return int(number) if number.isdecimal() else 0


def normal(os: str, architecture: str, variant: str = "", os_version: str = "") -> Platform:
    """In the usual words."""
    os, architecture = os.lower(), architecture.lower()
    if architecture in ("armhf", "armel") and not variant:
        variant = "v7" if architecture == "armhf" else "v6"
    architecture = _ARCHITECTURES.get(architecture, architecture)
    variant = variant.lower()
    if variant and variant.isdecimal():
        variant = f"v{variant}"
    return Platform(
        "darwin" if os == "macos" else os,
        architecture,
        "" if variant == _VARIANTS.get(architecture) else variant,
        os_version,
    )


def parse(text: str) -> Platform:
    """``linux/arm/v7``, or the architecture alone. Raises InvalidArgument."""
    parts = text.split("/")
    if not all(parts) or len(parts) > 3:
        raise InvalidArgument(f"platform {text!r}: must be OS/ARCHITECTURE[/VARIANT]")
    if len(parts) == 1:
        return normal("linux", parts[0])
    return normal(*parts)


def here() -> Platform:
    """Of this machine."""
    name = machine.machine()
    return normal("linux", *_OF_MACHINE.get(name, (name, "")))


def rank(wanted: Platform, offered: Platform) -> int | None:
    """How well something for ``offered`` runs on ``wanted``: less is better, None is not at all."""
    if (wanted.os, wanted.architecture) == (offered.os, offered.architecture):
        below = wanted.level - offered.level
        return below if below >= 0 else None
    if wanted.os != offered.os:
        return None
    # What runs programs of its smaller kin: containerd's platforms.Only.
    if (wanted.architecture, offered.architecture) == ("arm64", "arm"):
        return 100 - offered.level if offered.level <= 8 else None
    if (wanted.architecture, offered.architecture) == ("amd64", "386"):
        return 100
    return None
