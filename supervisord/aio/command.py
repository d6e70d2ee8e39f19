"""Runs a program to its end: OCI runtimes and foreign shims, when there is no shim to do it, and
programs that make file systems."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supervisord.contracts.errors import DeadlineExceeded, NotFound, Unknown


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def last_words(self) -> str:
        """The last line of its error output."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
        return (
            f"killed by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        )


async def run(
    argv: Sequence[str],
    *,
    seconds: float,
    stdin: bytes = b"",
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
) -> Result:
    """Runs ``argv`` and waits for it; it is killed with its process group at the deadline, or when
    the caller is cancelled. Raises NotFound (no such program), DeadlineExceeded, Unknown."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NotFound(f"{argv[0]}: {error.strerror}") from error
    except OSError as error:
        raise Unknown(f"{argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        raise DeadlineExceeded(f"{argv[0]}: did not end in {seconds} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Result(process.returncode or 0, stdout, stderr)
