"""Identifiers, namespaces, labels and digests: the rules for names that clients choose.

The rules are containerd's (``pkg/identifiers``, ``pkg/labels``) and the OCI image
specification's (descriptor, digests). Every check raises InvalidArgument with a message that
names the field and the rule; nothing here touches any state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .errors import InvalidArgument

MAX_IDENTIFIER = 76
MAX_LABEL = 4096
MAX_REF = 4096

_SHOWN = 150
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*\Z")
_DIGEST = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[.+_-][a-z0-9]+)*):(?P<hex>[A-Za-z0-9=_-]+)\Z")
_TYPE_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(rf"{_TYPE_NAME}/{_TYPE_NAME}\Z")
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+\Z")


def check_identifier(value: str, field: str) -> str:
    """``value`` if it is an identifier: 1-76 characters, alphanumeric runs joined by ``.``, ``_``
    or ``-``."""
    if not value:
        raise InvalidArgument(f"{field}: identifier must not be empty")
    if len(value) > MAX_IDENTIFIER:
        raise InvalidArgument(
            f"{field}: identifier {value[:20]!r}... is longer than {MAX_IDENTIFIER} characters"
        )
    if _IDENTIFIER.match(value) is None:
        raise InvalidArgument(
            f"{field}: identifier {value!r} must match [A-Za-z0-9]+([._-][A-Za-z0-9]+)*"
        )
    return value


def check_labels(labels: Mapping[str, str], field: str = "labels") -> None:
    """Refuses an empty key, and any pair of more than 4096 bytes in all."""
    for key, value in labels.items():
        if not key:
            raise InvalidArgument(f"{field}: a label key must not be empty")
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL:
            shown = key if len(key) <= 64 else key[:61] + "..."
            raise InvalidArgument(
                f"{field}: label {shown!r}: key and value have {size} bytes, "
                f"more than the maximum of {MAX_LABEL}"
            )


def check_digest(value: str, field: str = "digest") -> str:
    """``value`` if it is ``algorithm:hex`` with sha256, sha384 or sha512 in lower-case hex."""
    match = _DIGEST.match(value)
    if match is None:
        raise InvalidArgument(f"{field}: {_shown(value)} is not a digest of the form algorithm:hex")
    length = _HEX_LENGTH.get(match["algorithm"])
    if length is None:
        raise InvalidArgument(
            f"{field}: digest algorithm {_shown(match['algorithm'])} is not one of "
            + ", ".join(_HEX_LENGTH)
        )
    if len(match["hex"]) != length or _HEX.match(match["hex"]) is None:
        raise InvalidArgument(
            f"{field}: {_shown(value)} must have {length} lower-case hexadecimal characters"
        )
    return value


def _shown(value: str) -> str:
    """A value in a message about it: no longer than its reader needs."""
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")


def check_media_type(value: str, field: str = "media type") -> str:
    """``value`` if it has the form ``type/subtype`` (RFC 6838, section 4.2)."""
    if _MEDIA_TYPE.match(value) is None:
        raise InvalidArgument(
            f"{field}: {_shown(value)} is not a media type of the form type/subtype"
        )
    return value


def check_ref(value: str, field: str = "ref") -> str:
    """``value`` if it can name an ingest: 1-4096 bytes without a zero byte."""
    if not value:
        raise InvalidArgument(f"{field}: must not be empty")
    if len(value.encode()) > MAX_REF or "\0" in value:
        raise InvalidArgument(f"{field}: must have at most {MAX_REF} bytes and no zero byte")
    return value
