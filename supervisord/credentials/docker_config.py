"""docker's ``config.json``: ``auths``, ``credHelpers`` and ``credsStore``.

The helper of a host comes before the store, the store before what is written in the file; what a
helper does not know is looked for in the next. docker.io is written ``https://index.docker.io/v1/``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import program
from .secret import CredentialsError, Secret

_DOCKER = "https://index.docker.io/v1/"
_DOCKER_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class DockerConfig:
    """Reads a file, which is read anew for each question: ``docker login`` and
    password changes take effect at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def secret(self, host: str) -> Secret:
        """Raises CredentialsError (the file, or a helper that fails or hangs)."""
        config = await asyncio.to_thread(self._load)
        key = _DOCKER if host in _DOCKER_HOSTS else host
        helpers = config.get("credHelpers")
        named = helpers.get(key) or helpers.get(host) if isinstance(helpers, dict) else None
        for helper in (named, config.get("credsStore")):
            if isinstance(helper, str) and helper:
                found = await program.ask(helper, key)
                if found:
                    return found
        return self._written(config, key)

    def _load(self) -> Mapping[str, Any]:
        try:
            config = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CredentialsError(f"{self._path}: {error.strerror}") from error
        except ValueError as error:
            raise CredentialsError(f"{self._path}: is no JSON: {error}") from error
        if not isinstance(config, dict):
            raise CredentialsError(f"{self._path}: must be a JSON object")
        return config

    def _written(self, config: Mapping[str, Any], key: str) -> Secret:
        auths = config.get("auths")
        entries = auths if isinstance(auths, dict) else {}
        entry = next((entries[name] for name in entries if _same(name, key)), None)
        if not isinstance(entry, dict):
            return Secret()
        token = entry.get("registrytoken")
        if isinstance(token, str) and token:
            return Secret(header=f"Bearer {token}")
        identity = entry.get("identitytoken")
        if isinstance(identity, str) and identity:
            return Secret(secret=identity)
        packed = entry.get("auth")
        if isinstance(packed, str) and packed:
            return self._unpack(packed, key)
        user, password = entry.get("username"), entry.get("password")
        if isinstance(user, str) and isinstance(password, str):
            return Secret(user, password)
        return Secret()

    def _unpack(self, packed: str, key: str) -> Secret:
        try:
            user, colon, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise CredentialsError(
                f"{self._path}: auths.{key}.auth: must be base64 of USER:PASSWORD"
            )
        return Secret(user, password.rstrip("\0"))


def _same(name: str, key: str) -> bool:
    """Whether an entry is of that host: it may be written as a URL, with or without a path."""
    if name == key:
        return True
    if key == _DOCKER:
        return False
    bare = name.partition("://")[2] or name
    return bare.partition("/")[0] == key
