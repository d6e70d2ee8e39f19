"""The resources of an update, checked before they reach a runtime. Called by the task manager."""

from __future__ import annotations

import msgspec

from supervisord.contracts.errors import InvalidArgument


class _Memory(msgspec.Struct):
    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None


class _Cpu(msgspec.Struct):
    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str | None = None
    mems: str | None = None


class _Pids(msgspec.Struct):
    limit: int | None = None


class _Resources(msgspec.Struct):
    memory: _Memory | None = None
    cpu: _Cpu | None = None
    pids: _Pids | None = None


_decoder = msgspec.json.Decoder(_Resources)


def check_resources(value: bytes) -> None:
    """Raises InvalidArgument unless it is the JSON of OCI LinuxResources (runtime specification,
    config-linux); what only some runtimes know is left to them."""
    if not value:
        raise InvalidArgument("resources: must be given")
    try:
        _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"resources: must be the JSON of OCI LinuxResources: {error}"
        ) from error
    except RecursionError as error:
        raise InvalidArgument("resources: must not be nested so deeply") from error
