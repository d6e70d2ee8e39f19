"""The domain errors, and the gRPC status code that each stands for.

Interiors raise these and nothing else. They are translated once per border: by one gRPC
interceptor, by one ttrpc adapter, and back again by the clients. A message names the thing and
the rule (``container "web": already exists``), because it reaches a person unchanged.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Base of all domain errors. ``code`` is the number of the gRPC status code."""

    code: ClassVar[int] = 2

    @property
    def message(self) -> str:
        """What a client is told."""
        return str(self)


class Cancelled(Error):
    """The caller went away before the work was done."""

    code = 1


class Unknown(Error):
    """Something outside us failed in a way that has no better name (a runtime, a registry)."""

    code = 2


class InvalidArgument(Error):
    """The request is malformed whatever the state; the message names the field and the rule."""

    code = 3


class DeadlineExceeded(Error):
    """The work did not end in its time."""

    code = 4


class NotFound(Error):
    """The named thing does not exist in this namespace."""

    code = 5


class AlreadyExists(Error):
    """The name is taken."""

    code = 6


class PermissionDenied(Error):
    """The peer may not do this."""

    code = 7


class ResourceExhausted(Error):
    """A limit, a bounded queue, or the disk is full."""

    code = 8


class FailedPrecondition(Error):
    """The thing exists but is in a state that does not allow the request."""

    code = 9


class Aborted(Error):
    """A concurrent change won."""

    code = 10


class OutOfRange(Error):
    """An offset lies outside the thing."""

    code = 11


class Unimplemented(Error):
    """This daemon, or this plugin, does not offer the operation."""

    code = 12


class Internal(Error):
    """A defect of ours; the log has the traceback."""

    code = 13


class Unavailable(Error):
    """Somebody else holds it right now, or a part is not up: try again."""

    code = 14


class DataLoss(Error):
    """What is stored does not match its digest."""

    code = 15


class Unauthenticated(Error):
    """Credentials are missing or wrong."""

    code = 16


BY_CODE: dict[int, type[Error]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def from_code(code: int, message: str) -> Error:
    """The domain error for a gRPC status code received from a peer."""
    return BY_CODE.get(code, Unknown)(message)
