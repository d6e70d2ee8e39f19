"""Whether containers can be checkpointed and restored here, and if not, why.

``restore`` asks before it has the runtime do anything: a checkpoint that cannot work must not touch
the container. Three things have to be there: the program ``criu``, a kernel that it can work with
(which only its own ``check`` knows), and a runtime that was built to use it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisord.contracts.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unknown

from .command import PATH, Streams, finish, spawn

if TYPE_CHECKING:
    from .runtime import Runtime

_SECONDS = 60.0
_ERRORS = 4
_ABLE = "runc"
"""The runtime that always can."""

_WORDS = {"crun": "+CRIU"}
"""What a runtime that need not have been built with CRIU prints about itself if it was."""


async def require(runtime: Runtime) -> None:
    """Raises FailedPrecondition where a checkpoint or a restore by ``runtime`` cannot work. A
    sandboxed runtime has checkpoints of its own, and may try."""
    if not runtime.plain_processes:
        return
    if not installed("criu"):
        raise FailedPrecondition(
            "checkpoint and restore need the program criu, which is not installed"
        )
    if not await _built_for_it(runtime):
        raise FailedPrecondition(
            f"{runtime.binary} was built without CRIU: only containers of another runtime, "
            f"such as {_ABLE}, can be checkpointed and restored"
        )
    status, said = await _run(runtime, ["criu", "check"])
    if status:
        raise FailedPrecondition(
            f"this kernel cannot checkpoint or restore: criu check: {_errors(said)}"
        )


async def able(runtime: Runtime) -> str:
    """The binary to restore with where nobody has named one: the default if it can, else runc."""
    if not runtime.plain_processes or await _built_for_it(runtime) or not installed(_ABLE):
        return runtime.binary
    return _ABLE


async def _built_for_it(runtime: Runtime) -> bool:
    word = _WORDS.get(runtime.binary.rpartition("/")[2])
    if word is None:
        return True
    _, said = await _run(runtime, [runtime.binary, "--version"])
    return word in said


def installed(program: str) -> bool:
    """Whether a program is in the search path."""
    folders = (os.environ.get("PATH") or PATH).split(":")
    return any(os.access(f"{folder}/{program}", os.X_OK) for folder in folders)


async def _run(runtime: Runtime, arguments: list[str]) -> tuple[int, str]:
    """A program's exit status, and all that it said."""
    out = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        try:
            pid = spawn(arguments, Streams(stdout=out, stderr=out))
        except (NotFound, Unknown) as error:
            return 127, error.message
        what = " ".join(arguments)
        try:
            exit = await finish(runtime.loop, runtime.reaper, pid, _SECONDS, what)
        except DeadlineExceeded:
            return 124, f"it did not end in {_SECONDS:g} s"
        text = os.pread(out, os.fstat(out).st_size, 0).decode(errors="replace")
        return exit.status, text
    finally:
        os.close(out)


def _errors(said: str) -> str:
    """What CRIU says is missing: its errors without their places in its source, the last few."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.partition("): ")[2] for line in lines if line.startswith("Error (")]
    telling = [error for error in errors if error and not error.startswith("exited, status")]
    return "; ".join(telling[-_ERRORS:]) or (lines[-1] if lines else "it failed without a word")
