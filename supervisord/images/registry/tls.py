"""TLS to an endpoint: whom we believe, and who we say we are."""

from __future__ import annotations

import ssl

from supervisord.contracts.errors import InvalidArgument

from ..hosts.endpoint import Tls


def context(tls: Tls) -> ssl.SSLContext:
    """The system's authorities and those of ``tls``. Of several client certificates the last of
    each kind of key is shown. Blocks. Raises InvalidArgument, which names the file."""
    found = ssl.create_default_context()
    if tls.skip_verify:
        found.check_hostname = False
        found.verify_mode = ssl.CERT_NONE
    name = ""
    try:
        for name in tls.ca:
            found.load_verify_locations(name)
        for name, key in tls.client:
            found.load_cert_chain(name, key)
    except OSError as error:  # what OpenSSL says is one, too
        raise InvalidArgument(f"{name}: {error.strerror or error}") from error
    return found
