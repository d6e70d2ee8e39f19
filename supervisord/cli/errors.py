"""What a person is told when a command fails.

Every command raises ``CliError`` (or lets an RPC error pass), and only ``main`` prints it: one line
on stderr. ``Exit`` ends the command with a code and no message, as a container's own code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class CliError(Exception):
    """A failure with one readable line."""


class Exit(Exception):
    """Ends the command with this exit code, silently."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Failures:
    """For commands over many things: goes on after a failure, and raises all of them at the end."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lines: list[str] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Notes what fails inside, with the name of the thing it failed for."""
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            text = rpc_text(error, self._address)
            self._lines.append(text if name in text else f"{name}: {text}")
        except CliError as error:
            self._lines.append(str(error))

    def check(self) -> None:
        """Raises CliError with all that failed, if anything did."""
        if self._lines:
            raise CliError("; ".join(self._lines))


def rpc_text(error: grpc.RpcError, address: str) -> str:
    """One line for an RPC error: the daemon's own words, and a hint where the line was cut."""
    import grpc

    code, text = rpc_status(error)
    # gRPC's own words: a registry that the daemon cannot reach is UNAVAILABLE as well.
    if code is grpc.StatusCode.UNAVAILABLE and ("failed to connect" in text or "unix:" in text):
        return f"lost the connection to {address}: is the daemon running? ({text})"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the daemon does not offer this: {text}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer from {address} in time (--timeout): {text}"
    return text or code.name.lower().replace("_", " ")


def rpc_status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """The status code and the first line of the details of an RPC error."""
    import grpc

    if isinstance(error, grpc.Call):
        code = error.code()
        details = (error.details() or "").strip()
        return code, " ".join(details.split("\n"))
    return grpc.StatusCode.UNKNOWN, str(error)


def is_code(error: grpc.RpcError, *names: str) -> bool:
    """Whether an RPC error has one of these status codes, by name (``NOT_FOUND``)."""
    return rpc_status(error)[0].name in names
