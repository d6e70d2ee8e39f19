"""What a registry's refusals mean to us: statuses and the error body of the distribution API."""

from __future__ import annotations

import json

from supervisord.contracts.errors import (
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unknown,
)

_BY_STATUS: dict[int, type[Error]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    407: Unauthenticated,
    408: DeadlineExceeded,
    416: OutOfRange,
    429: ResourceExhausted,
}
_LONGEST = 500


def of_status(status: int, what: str, body: bytes = b"") -> Error:
    """The domain error of a response; ``what`` is the request, for people."""
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else Unknown)
    said = _said(body)
    who = "proxy" if status == 407 else "registry"
    return kind(f"{what}: the {who} answered {status}" + (f": {said}" if said else ""))


def _said(body: bytes) -> str:
    """What the error body says, on one line."""
    try:
        errors = json.loads(body)["errors"]
        said = "; ".join(
            f"{one.get('code', '')}: {one.get('message', '')}".strip(": ") for one in errors
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        said = body.decode(errors="replace")
    return "".join(sign if sign.isprintable() else " " for sign in said).strip()[:_LONGEST]
