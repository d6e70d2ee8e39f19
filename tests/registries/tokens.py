"""A token server, as docker's authentication specification has it, in a thread of its own.

It signs with an authority's key what ``docker-registry`` then believes: JSON web tokens (ES256)
that say which repository may be pulled from and pushed to. It counts how it was asked.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.registries.certificates import Authority, sign
from tests.registries.server import PASSWORD, USER

REFRESH = "a-refresh-token"
_ISSUER, _SERVICE = "test issuer", "test registry"


class TokenServer:
    """``oauth`` False refuses POST, as older servers do; ``seconds`` is how long a token holds."""

    def __init__(self, authority: Authority) -> None:
        self.oauth = True
        self.seconds = 300
        self.asked: list[str] = []
        self._authority = authority
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                user = _basic(self.headers.get("Authorization", ""))
                server.asked.append(f"GET {user or 'anonymous'}")
                self._answer(query.get("scope", []), allowed=user in ("", USER))

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                form = parse_qs(self.rfile.read(length).decode())
                server.asked.append(f"POST {form['grant_type'][0]}")
                if not server.oauth:
                    self._say(405, {})
                    return
                allowed = form.get("refresh_token") == [REFRESH] or (
                    form.get("username"),
                    form.get("password"),
                ) == ([USER], [PASSWORD])
                self._answer(form.get("scope", [""])[0].split(), allowed=allowed)

            def _answer(self, scopes: list[str], *, allowed: bool) -> None:
                if not allowed:
                    self._say(401, {"errors": [{"code": "UNAUTHORIZED", "message": "who?"}]})
                    return
                token = server.token(scopes)
                self._say(200, {"token": token, "expires_in": server.seconds})

            def _say(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/token"

    @property
    def table(self) -> dict[str, str]:
        """What the registry has to be told of it."""
        return {
            "realm": self.url,
            "service": _SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self._authority.certificate),
        }

    def token(self, scopes: list[str]) -> str:
        """A signed token for these."""
        certificate = self._authority.certificate.read_text()
        chain = "".join(certificate.splitlines()[1:-1])
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": USER,
            "aud": _SERVICE,
            "exp": now + self.seconds,
            "nbf": now - 60,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        head = _packed({"typ": "JWT", "alg": "ES256", "x5c": [chain]})
        body = f"{head}.{_packed(claims)}"
        signature = _plain(sign(self._authority.key, body.encode()))
        return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"

    @contextmanager
    def serving(self) -> Iterator[TokenServer]:
        """Until the block ends."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()


def _packed(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _basic(header: str) -> str:
    """The user, "" for none; another name where the password is wrong."""
    if not header.startswith("Basic "):
        return ""
    user, _, password = base64.b64decode(header[6:]).decode().partition(":")
    return user if (user, password) == (USER, PASSWORD) else "somebody else"


def _plain(der: bytes) -> bytes:
    """Both numbers of an ECDSA signature, 32 bytes each (RFC 7518, section 3.4)."""
    numbers, position = b"", 2
    for _ in range(2):
        length = der[position + 1]
        number = der[position + 2 : position + 2 + length]
        numbers += number.lstrip(b"\0").rjust(32, b"\0")
        position += 2 + length
    return numbers
