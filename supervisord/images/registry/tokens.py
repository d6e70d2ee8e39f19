"""Bearer tokens: fetched from the server that a challenge names (docker's token and OAuth2 flows).

With a secret the OAuth2 form is posted first, as newer servers want it; those that do not know it
(400, 401, 404, 405) get the older GET with basic authentication. Without, the GET is anonymous.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from supervisord.contracts.errors import PermissionDenied, Unavailable, Unknown
from supervisord.credentials.secret import Secret

from ..hosts.defaults import is_loopback
from . import failures
from .challenge import Challenge
from .http import aiohttp
from .proxies import Proxies

CLIENT_ID = "supervisord"

_NOT_OAUTH = frozenset({400, 401, 404, 405})
_LARGEST = 1 << 20
_EARLY_SECONDS = 5.0
_USUAL_SECONDS = 60.0


_Ask = Callable[..., Awaitable[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """``until`` is by the monotonic clock, a little before the server forgets it."""

    header: str
    until: float

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self.until


async def fetch(
    session: aiohttp.ClientSession,
    challenge: Challenge,
    scopes: Sequence[str],
    secret: Secret,
    *,
    from_tls: bool,
    proxies: Proxies,
) -> Token:
    """A token for these scopes. ``from_tls``: the challenge came by a connection that was secure.

    Raises Unauthenticated, PermissionDenied, Unavailable, Unknown."""
    realm = challenge.parameters.get("realm", "")
    parts = urlsplit(realm)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Unknown(f"registry: its challenge has no URL for tokens: {realm[:200]!r}")
    if secret and from_tls and parts.scheme == "http" and not is_loopback(parts.netloc):
        raise PermissionDenied(f"{realm}: the registry asks for credentials without TLS")
    service = challenge.parameters.get("service", "")
    ask = partial(_ask, session, proxy=proxies.of(realm))
    if secret.secret:
        answer = await _post(ask, realm, service, scopes, secret)
        if answer is not None:
            return _token(realm, answer)
    return _token(realm, await _get(ask, realm, service, scopes, secret))


async def _post(
    ask: _Ask,
    realm: str,
    service: str,
    scopes: Sequence[str],
    secret: Secret,
) -> Mapping[str, Any] | None:
    form = {"service": service, "client_id": CLIENT_ID}
    if scopes:
        form["scope"] = " ".join(scopes)
    if secret.user:
        form |= {"grant_type": "password", "username": secret.user, "password": secret.secret}
    else:
        form |= {"grant_type": "refresh_token", "refresh_token": secret.secret}
    status, body = await ask("POST", realm, data=form)
    if status in _NOT_OAUTH:
        return None
    return _read(realm, status, body)


async def _get(
    ask: _Ask,
    realm: str,
    service: str,
    scopes: Sequence[str],
    secret: Secret,
) -> Mapping[str, Any]:
    query = [("service", service)] if service else []
    query += [("scope", scope) for scope in scopes]
    headers = {"Authorization": secret.basic} if secret.secret else {}
    return _read(realm, *await ask("GET", realm, params=query, headers=headers))


async def _ask(
    session: aiohttp.ClientSession, method: str, realm: str, **arguments: Any
) -> tuple[int, bytes]:
    try:
        # A redirect could lead the secret anywhere.
        async with session.request(method, realm, allow_redirects=False, **arguments) as response:
            return response.status, await response.content.read(_LARGEST)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"{realm}: {error or type(error).__name__}") from error


def _read(realm: str, status: int, body: bytes) -> Mapping[str, Any]:
    if not 200 <= status < 300:
        raise failures.of_status(status, f"token from {realm}", body)
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unknown(f"token from {realm}: is no JSON object")
    return answer


def _token(realm: str, answer: Mapping[str, Any]) -> Token:
    text = answer.get("access_token") or answer.get("token")
    if not isinstance(text, str) or not text or not text.isascii() or not text.isprintable():
        raise Unknown(f"token from {realm}: there is none in the answer")
    seconds = answer.get("expires_in")
    if not isinstance(seconds, (int, float)) or seconds <= 0:
        seconds = _USUAL_SECONDS
    return Token(f"Bearer {text}", time.monotonic() + max(seconds - _EARLY_SECONDS, seconds / 2))
