"""Who the user is to a registry: what was given, else docker's configuration of this user."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from google.protobuf.any_pb2 import Any as Packed

from protos.containerd.types.transfer import transfer_pb2 as types
from supervisord.credentials.secret import CredentialsError, Secret

from ..errors import CliError
from ..output import warn

Ask = Callable[[str], Secret]


def given(user: str) -> Ask:
    """``NAME`` or ``NAME:SECRET``; what is missing is read from the terminal, or from the variable
    SCTL_PASSWORD. Raises CliError."""
    name, colon, secret = user.partition(":")
    if not colon:
        secret = os.environ.get("SCTL_PASSWORD", "")
    if not colon and not secret:
        if not sys.stdin.isatty():
            raise CliError("--user: give NAME:SECRET, or SCTL_PASSWORD, where there is no terminal")
        secret = getpass.getpass(f"Password of {name}: ")
    return lambda host: Secret(name, secret)


def configured() -> Ask:
    """docker's ``config.json``, with its helpers."""
    folder = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")

    def ask(host: str) -> Secret:
        from supervisord.credentials.docker_config import DockerConfig  # few registries ask

        config = DockerConfig(Path(folder) / "config.json")
        try:
            return asyncio.run(config.secret(host))
        except CredentialsError as error:
            warn(f"no credentials for {host}: {error}")
            return Secret()

    return ask


def answering(ask: Ask) -> Callable[[Packed], types.AuthResponse]:
    """Answers the daemon's questions."""

    def answer(value: Packed) -> types.AuthResponse:
        secret = ask(types.AuthRequest.FromString(value.value).host)
        if secret.header:
            return types.AuthResponse(authType=types.HEADER, secret=secret.header)
        if secret.user:
            return types.AuthResponse(
                authType=types.CREDENTIALS, username=secret.user, secret=secret.secret
            )
        if secret.secret:
            return types.AuthResponse(authType=types.REFRESH, secret=secret.secret)
        return types.AuthResponse(authType=types.NONE)

    return answer
