"""What is shown to one server: learnt from its challenges, kept while it holds.

One authorizer belongs to one endpoint and answers for its host alone: what another host wants to
see, after a redirect or because a descriptor names it, is not known here, and so never sent there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from supervisord.contracts.errors import Unauthenticated
from supervisord.credentials.secret import Secret

from . import tokens
from .challenge import Challenge, parse
from .http import aiohttp
from .keeper import Keeper
from .proxies import Proxies

_MOST_TOKENS = 64


class Authorizer:
    """The Authorization header of one endpoint's requests."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: str,
        keeper: Keeper,
        proxies: Proxies,
        *,
        tls: bool,
    ) -> None:
        self._session = session
        self._proxies = proxies
        self._host = host
        self._keeper = keeper
        self._tls = tls
        self._secret: Secret | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], tokens.Token] = {}
        self._lock = asyncio.Lock()
        self._asking = asyncio.Lock()

    async def header(self, scopes: Sequence[str]) -> str:
        """What to send, "" for nothing. Raises domain errors of those who were asked."""
        if self._challenge is None:
            return ""
        secret = await self._known()
        if secret.header:
            return secret.header
        if self._challenge.scheme == "basic":
            return secret.basic
        key = tuple(sorted(scopes))
        async with self._lock:  # the others wait for the same answer instead of asking as well
            token = self._tokens.get(key)
            if token is None or not token.fresh:
                token = await tokens.fetch(
                    self._session,
                    self._challenge,
                    key,
                    secret,
                    from_tls=self._tls,
                    proxies=self._proxies,
                )
                while len(self._tokens) >= _MOST_TOKENS:
                    self._tokens.pop(next(iter(self._tokens)))
                self._tokens[key] = token
            return token.header

    async def refused(self, headers: Sequence[str], sent: str, scopes: Sequence[str]) -> bool:
        """A request with ``sent`` got 401 with these challenges. Whether to try once more."""
        challenge = _best(parse(headers))
        if challenge is None:
            return False
        secret = await self._known(headers)
        if challenge.scheme == "basic" and not secret:
            raise Unauthenticated(f"{self._host}: wants a user and a password")
        key = tuple(sorted(scopes))
        stale = self._tokens.get(key)
        if stale is not None and stale.header == sent:
            del self._tokens[key]
        first = self._challenge is None
        self._challenge = challenge
        return first or sent == "" or challenge.scheme == "bearer"

    async def _known(self, challenges: Sequence[str] = ()) -> Secret:
        async with self._asking:
            if self._secret is None:
                self._secret = await self._keeper.secret(self._host, challenges)
            return self._secret


def _best(challenges: Sequence[Challenge]) -> Challenge | None:
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None
