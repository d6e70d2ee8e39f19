"""References: ``HOST/REPOSITORY[:TAG][@DIGEST]``, as registries and image names have them.

No short names: those are a matter of clients, which know a default registry. The grammar is that of
the distribution specification (spec.md, "Pulling manifests"); a host may have a port.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from supervisord.contracts.errors import InvalidArgument

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_LONGEST_REPOSITORY = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``tag`` and ``digest`` are "" where it has none."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def locator(self) -> str:
        """Where it is, without what it is: ``HOST/REPOSITORY``."""
        return f"{self.host}/{self.repository}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.locator}{tag}{'@' if self.digest else ''}{self.digest}"


def parse(text: str) -> Reference:
    """Raises InvalidArgument, which says what of it breaks which rule."""
    rest, at, digest = text.partition("@")
    host, slash, path = rest.partition("/")
    repository, colon, tag = path.partition(":")
    if not slash or _HOST.fullmatch(host) is None:
        raise InvalidArgument(f"reference {text!r}: must begin with a host: HOST/REPOSITORY[:TAG]")
    if len(repository) > _LONGEST_REPOSITORY or _REPOSITORY.fullmatch(repository) is None:
        raise InvalidArgument(
            f"reference {text!r}: repository {repository!r} must be lower case words with"
            f" single separators, at most {_LONGEST_REPOSITORY} characters"
        )
    if colon and _TAG.fullmatch(tag) is None:
        raise InvalidArgument(
            f"reference {text!r}: tag {tag!r} must be 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-'"
        )
    if at and not is_digest(digest):
        raise InvalidArgument(f"reference {text!r}: digest {digest!r} must be ALGORITHM:HEX")
    return Reference(host, repository, tag, digest)


def is_digest(text: str) -> bool:
    """Whether it is a digest that content can have here."""
    return _DIGEST.fullmatch(text) is not None
