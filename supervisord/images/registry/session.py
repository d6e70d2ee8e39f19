"""HTTP with one endpoint: connections, TLS, authorization, redirects and patience.

A request is repeated where that may help: after a challenge, after 408, 429 and 5xx (as long as
Retry-After says), after a connection that was refused or cut before the answer. There is no
limit on how long a body takes, only on how long nothing comes of it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from supervisord import __version__
from supervisord.contracts.errors import Error, PermissionDenied, Unavailable

from ..hosts.endpoint import Endpoint
from . import failures, proxies, tls
from .authorizer import Authorizer
from .delays import delay
from .http import aiohttp, ready
from .keeper import Keeper

if TYPE_CHECKING:
    from multidict import CIMultiDict

Data = bytes | Callable[[], AsyncIterator[bytes]]
"""A body; one that is made anew for each attempt says its length in a header."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_MOST_REDIRECTS = 10
_MOST_CHALLENGES = 3
_BUFFER = 1 << 20
_LARGEST_ERROR = 64 << 10


@dataclass(frozen=True, slots=True)
class Patience:
    """``stall``: seconds without any byte until a connection counts as dead; ``dial``: seconds for
    a connection to be made; ``attempts``: how often a request is made at most."""

    stall: float = 30.0
    dial: float = 30.0
    attempts: int = 5


@asynccontextmanager
async def session(
    endpoint: Endpoint, keeper: Keeper, patience: Patience | None = None
) -> AsyncIterator[Session]:
    """A session, closed with the block. Raises InvalidArgument (TLS files)."""
    await ready()
    # Hundreds of authorities are read: a thread's work.
    context = await asyncio.to_thread(tls.context, endpoint.tls) if endpoint.secure else None
    found = Session(endpoint, keeper, patience or Patience(), context)
    try:
        yield found
    finally:
        await found.close()


class Session:
    """One endpoint; made by ``session``. ``unreached``: the last time there was no connection."""

    def __init__(
        self,
        endpoint: Endpoint,
        keeper: Keeper,
        patience: Patience,
        context: ssl.SSLContext | None,
    ) -> None:
        self.endpoint = endpoint
        self.unreached = False
        self._patience = patience
        self._scheme = endpoint.scheme
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=endpoint.dial_seconds or self._patience.dial,
            sock_read=self._patience.stall,
        )
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True, limit=0),
            timeout=timeout,
            auto_decompress=False,  # digests are of what was sent
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BUFFER,
            requote_redirect_url=False,
        )
        self._proxies = proxies.from_environment()
        self._authorizer = Authorizer(
            self._http, endpoint.host, keeper, self._proxies, tls=endpoint.scheme == "https"
        )

    @property
    def stall(self) -> float:
        """Seconds without any byte until a connection counts as dead."""
        return self._patience.stall

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.close()

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Of the endpoint's API; ``path`` begins with the repository."""
        asked = f"?{urlencode(query)}" if query else ""
        return f"{self._scheme}://{self.endpoint.host}{self.endpoint.path}/{path}{asked}"

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        scopes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        data: Data | None = None,
        good: Sequence[int] = (200,),
        attempts: int = 0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response, with one of the ``good`` statuses; its body is read by the caller.
        ``attempts``: how often it is tried at most, 0 for what is usual.

        Raises the domain errors of ``failures``, Unavailable for what the network does."""
        response = await self._persist(
            method, url, scopes, headers or {}, data, good, attempts or self._patience.attempts
        )
        try:
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def _persist(
        self,
        method: str,
        url: str,
        scopes: Sequence[str],
        headers: Mapping[str, str],
        data: Data | None,
        good: Sequence[int],
        attempts: int,
    ) -> aiohttp.ClientResponse:
        attempt = 0
        while True:
            attempt += 1
            wait: float | None
            try:
                response = await self._authorized(method, url, scopes, headers, data)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if self._falls_back(url, error):
                    url = "http" + url.removeprefix("https")
                    continue
                self.unreached = isinstance(
                    error, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError)
                )
                failure: Error = Unavailable(f"{method} {_shown(url)}: {self._why(url, error)}")
                wait = delay(attempt) if _may_help(error) else None
            else:
                self.unreached = False
                if response.status in good:
                    return response
                async with response:
                    failure = failures.of_status(
                        response.status, f"{method} {_shown(url)}", await _body(response)
                    )
                    wait = None
                    if response.status in _AGAIN:
                        wait = delay(attempt, response.headers.get("Retry-After"))
            if wait is None or attempt >= attempts:
                raise failure
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    async def _authorized(
        self,
        method: str,
        url: str,
        scopes: Sequence[str],
        headers: Mapping[str, str],
        data: Data | None,
    ) -> aiohttp.ClientResponse:
        for _ in range(_MOST_CHALLENGES):
            shown = await self._authorizer.header(scopes)
            response = await self._follow(method, url, shown, headers, data)
            if response.status != 401:
                return response
            challenges = response.headers.getall("WWW-Authenticate", [])
            if not await self._authorizer.refused(challenges, shown, scopes):
                return response
            response.release()
        return response

    async def _follow(
        self, method: str, url: str, shown: str, headers: Mapping[str, str], data: Data | None
    ) -> aiohttp.ClientResponse:
        """The answer after redirects. Neither what authorizes nor the headers that are configured
        for this server go to another one."""
        from yarl import URL  # comes with aiohttp

        for _ in range(_MOST_REDIRECTS):
            response = await self._http.request(
                method,
                URL(url, encoded=True),
                headers=self._headers(url, shown, headers),
                data=data() if callable(data) else data,
                allow_redirects=False,
                proxy=self._proxies.of(url),
            )
            location = response.headers.get("Location")
            follows = _SAME_METHOD if method not in ("GET", "HEAD") else _REDIRECTS
            if response.status not in follows or not location:
                return response
            response.release()
            target = urljoin(url, location)
            _check_redirect(url, target)
            url = target
        raise Unavailable(f"{method} {_shown(url)}: more than {_MOST_REDIRECTS} redirects")

    def _headers(self, url: str, shown: str, headers: Mapping[str, str]) -> CIMultiDict[str]:
        from multidict import CIMultiDict  # comes with aiohttp

        sent = CIMultiDict(headers)
        sent.setdefault("User-Agent", f"supervisord/{__version__}")
        sent.setdefault("Accept-Encoding", "identity")
        if urlsplit(url).netloc == self.endpoint.host:
            for name, values in self.endpoint.header.items():
                sent.popall(name, None)
                for value in values:
                    sent.add(name, value)
            if shown:
                sent["Authorization"] = shown
        return sent

    def _falls_back(self, url: str, error: Exception) -> bool:
        """Whether to go on without TLS, which nobody speaks there; from now on for all."""
        if not (self.endpoint.falls_back and url.startswith(f"https://{self.endpoint.host}/")):
            return False
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, TimeoutError)):
            return False
        if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerDisconnectedError)):
            self._scheme = "http"
            return True
        return False

    def _why(self, url: str, error: Exception) -> str:
        """What the network did, for people."""
        proxy = self._proxies.of(url)
        by = f"by the proxy {proxies.shown(proxy)}: " if proxy else ""
        if isinstance(error, aiohttp.ClientHttpProxyError):  # what it says has its password
            return f"{by}it answered {error.status}: {error.message}"
        if isinstance(error, TimeoutError):
            return f"{by}no answer in time"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return f"{by}{error.host}:{error.port}: {error.certificate_error}"
        if isinstance(error, aiohttp.ClientConnectorError):
            why = error.os_error.strerror or str(error.os_error)
            return f"{by}cannot connect to {error.host}:{error.port}: {why}"
        return by + (str(error) or type(error).__name__)


def _check_redirect(url: str, target: str) -> None:
    old, new = urlsplit(url), urlsplit(target)
    if new.scheme not in ("http", "https") or not new.netloc:
        raise Unavailable(f"{_shown(url)}: redirected to {target[:200]!r}")
    if old.scheme == "https" and new.scheme == "http":
        raise PermissionDenied(f"{_shown(url)}: redirected to one without TLS, {_shown(target)}")


def _may_help(error: Exception) -> bool:
    """Whether to try again: not what will be the same, such as a certificate."""
    return not isinstance(
        error, (aiohttp.ClientSSLError, aiohttp.InvalidURL, aiohttp.ClientHttpProxyError)
    )


async def _body(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.read(_LARGEST_ERROR)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return b""  # the status says enough


def _shown(url: str) -> str:
    """Without its query, which may hold signatures."""
    return url.partition("?")[0]
