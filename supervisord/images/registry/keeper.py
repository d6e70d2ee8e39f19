"""Who knows what to show to a registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from supervisord.contracts.errors import InvalidArgument, Unavailable
from supervisord.credentials.docker_config import DockerConfig
from supervisord.credentials.secret import CredentialsError, Secret


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


class Docker:
    """Implements Keeper over docker's configuration of this machine."""

    def __init__(self, path: Path) -> None:
        self._config = DockerConfig(path)

    async def secret(self, host: str, challenges: Sequence[str] = ()) -> Secret:
        """Raises InvalidArgument (the file), Unavailable (a helper)."""
        try:
            return await self._config.secret(host)
        except CredentialsError as error:
            raise (Unavailable if error.passing else InvalidArgument)(str(error)) from error
