"""Credential helpers: programs ``docker-credential-NAME`` that keep secrets elsewhere.

``get`` reads a server's name from standard input and answers JSON with Username and Secret; a
Username ``<token>`` says that the Secret is an identity token (docker-credential-helpers, README).
"""

from __future__ import annotations

import asyncio
import json
import re

from .secret import CredentialsError, Secret

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECONDS = 30.0
_UNKNOWN = "credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105 - says what the secret is


async def ask(name: str, server: str) -> Secret:
    """An empty one where the helper knows nothing. Raises CredentialsError."""
    if _NAME.fullmatch(name) is None:
        raise CredentialsError(f"credential helper {name!r}: must be a word")
    program = f"docker-credential-{name}"
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise CredentialsError(f"{program}: {error.strerror}", passing=True) from error
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate(server.encode())
    except TimeoutError as error:
        raise CredentialsError(f"{program}: no answer in {_SECONDS:g} s", passing=True) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = (out + err).decode(errors="replace").strip()
        if _UNKNOWN in said:
            return Secret()
        raise CredentialsError(
            f"{program}: exit status {process.returncode}: {said[:500]}", passing=True
        )
    return _read(program, out)


def _read(program: str, out: bytes) -> Secret:
    try:
        answer = json.loads(out)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError) as error:
        raise CredentialsError(
            f"{program}: answered no JSON with Username and Secret", passing=True
        ) from error
    return Secret("" if user == _TOKEN_USER else str(user), str(secret))
