"""A name and a secret, and what goes wrong with them."""

from __future__ import annotations

import base64
from dataclasses import dataclass


class CredentialsError(Exception):
    """Credentials cannot be had: a file or a program is not as it should be. ``passing``: trying
    again may help."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


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
