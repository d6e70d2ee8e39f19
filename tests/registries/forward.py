"""A proxy that clients are configured with: it forwards http, and opens tunnels (CONNECT).

Names are looked up in a table of its own, so that a test may use one that no resolver knows: what
is reached by such a name came this way. It lives in a thread.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = ("connection", "keep-alive", "proxy-authorization", "proxy-connection", "transfer-encoding")


class ForwardProxy:
    """``names`` says which ``HOST:PORT`` stands for a name; ``credentials`` are ``USER:PASSWORD``
    that it wants. ``seen`` has each request's method and target."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = dict(names)
        self.credentials = ""
        self.seen: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                if not self._known():
                    return
                target = proxy.names.get(self.path)
                if target is None:
                    self.send_error(502)
                    return
                host, _, port = target.partition(":")
                with socket.create_connection((host, int(port)), 5) as other:
                    self.send_response(200)
                    self.end_headers()
                    _tunnel(self.connection, other)
                self.close_connection = True

            def do_GET(self) -> None:
                if not self._known():
                    return
                parts = urlsplit(self.path)
                target = proxy.names.get(parts.netloc)
                if target is None:
                    self.send_error(502)
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                asked = parts.path + (f"?{parts.query}" if parts.query else "")
                with contextlib.closing(HTTPConnection(target, timeout=10)) as connection:
                    connection.request(self.command, asked, body, headers)
                    answer = connection.getresponse()
                    data = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in (*_HOP, "content-length"):
                            self.send_header(name, value)
                    told = answer.getheader("Content-Length") or str(len(data))
                    self.send_header("Content-Length", told)
                    self.end_headers()
                    self.wfile.write(data)

            do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

            def _known(self) -> bool:
                proxy.seen.append((self.command, self.path))
                packed = base64.b64encode(proxy.credentials.encode()).decode()
                shown = self.headers.get("Proxy-Authorization", "")
                if not proxy.credentials or shown == f"Basic {packed}":
                    return True
                self.send_response(407, "who are you")
                self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return False

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[ForwardProxy]:
        """Until the block ends."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()


def _tunnel(one: socket.socket, other: socket.socket) -> None:
    """Bytes both ways, until either side ends."""
    while True:
        readable, _, _ = select.select([one, other], [], [], 10)
        if not readable:
            return
        for source in readable:
            data = source.recv(65536)
            if not data:
                return
            (other if source is one else one).sendall(data)
