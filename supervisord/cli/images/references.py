"""Image names: what docker's short names stand for, and names made from an archive's tags."""

from __future__ import annotations

import re

from ..errors import CliError

_DOMAIN = "docker.io"
_PATH = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}")


def normalize(name: str, default: str = "") -> str:
    """The full form of a docker name: ``alpine`` is ``docker.io/library/alpine:latest``.
    ``default`` is another registry for names without one.

    Raises CliError for what cannot be a reference."""
    if "://" in name:
        raise CliError(f"{name!r} is not an image name: it begins with a host, without https://")
    rest, at, digest = name.partition("@")
    domain, slash, path = rest.partition("/")
    if not slash or not (domain == "localhost" or "." in domain or ":" in domain):
        domain, path = default or _DOMAIN, rest
    if domain == "index.docker.io":
        domain = _DOMAIN
    path, colon, tag = path.partition(":")
    if domain == _DOMAIN and "/" not in path:
        path = "library/" + path
    if _PATH.fullmatch(path) is None:
        raise CliError(f"{name!r} is not an image name: {path!r} must be lower case, a/b-c")
    if colon and _TAG.fullmatch(tag) is None:
        raise CliError(f"{name!r} is not an image name: bad tag {tag!r}")
    if at:
        if _DIGEST.fullmatch(digest) is None:
            raise CliError(f"{name!r} is not an image name: bad digest {digest!r}")
        # docker's rule: a digest makes the tag pointless.
        return f"{domain}/{path}@{digest}"
    return f"{domain}/{path}:{tag or 'latest'}"


def repository(name: str, default: str = "") -> str:
    """The repository of a docker name, without tag or digest. Raises CliError."""
    whole = normalize(name, default).partition("@")[0]
    folder, slash, last = whole.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def familiar(name: str) -> str:
    """The short form that docker prints: without ``docker.io/`` and ``library/``."""
    short = name.removeprefix(f"{_DOMAIN}/")
    return short.removeprefix("library/") if short != name else name


def tag_of(name: str) -> str:
    """The tag of a full name, or the whole name where it has none (OCI's ref.name)."""
    if "@" in name:
        return name
    last = name.rpartition("/")[2]
    _, colon, tag = last.partition(":")
    return tag if colon else name


def from_archive(tag: str, base: str, *, only_base: bool) -> str:
    """The image name for an OCI archive's ref.name, "" for none.

    A bare tag is put behind ``base``; a full reference stays as it is, and with ``only_base`` is
    dropped unless it belongs to ``base``."""
    if any(mark in tag for mark in "/:@"):
        belongs = tag == base or (tag.startswith(base) and tag[len(base)] in "/:@")
        return tag if belongs or not only_base else ""
    return f"{base}:{tag}"
