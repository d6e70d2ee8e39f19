"""A name and a secret, and who knows them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """``user`` "" says that ``secret`` is a refresh token (docker's identity token).
    ``header`` is a whole Authorization header that is sent as it is, instead of both."""

    user: str = ""
    secret: str = ""
    header: str = ""

    def __bool__(self) -> bool:
        return bool(self.secret or self.header)

    @property
    def basic(self) -> str:
        """The header of basic authentication (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()

    def __repr__(self) -> str:
        return f"Secret(user={self.user!r})"


class Keeper(Protocol):
    """Knows secrets by host."""

    async def secret(self, host: str, challenges: Sequence[str] = ()) -> Secret:
        """What to show there, which sent these ``WWW-Authenticate``; an empty one for anonymous.
        Raises domain errors."""
        ...


class Given:
    """The same for every host: what a user gave for this one request."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    async def secret(self, host: str, challenges: Sequence[str] = ()) -> Secret:
        return self._secret


NOBODY = Given(Secret())
