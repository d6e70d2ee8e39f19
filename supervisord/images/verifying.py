"""Whether an image may be pulled: programs of a folder are asked, as containerd asks them.

Each is told the name, the digest, and on standard input the descriptor; it prints a reason and says
yes by exit status 0. All have to (containerd: docs/image-verification.md). Nothing of an image but
its descriptor is here yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from typing import Protocol, cast

import msgspec

from supervisord.contracts.errors import FailedPrecondition, PermissionDenied

from .oci.documents import Descriptor

log = logging.getLogger(__name__)

_STDIN_TYPE = "application/vnd.oci.descriptor.v1+json"
_MOST_OUTPUT = 32 << 10
_PIECE = 16 << 10


class Verifier(Protocol):
    """Judges images before they are pulled."""

    async def verify(self, name: str, target: Descriptor) -> str:
        """Why the image may be pulled. Raises PermissionDenied where it may not, and
        FailedPrecondition where there is no judgement."""
        ...


async def verified(verifiers: Mapping[str, Verifier], name: str, target: Descriptor) -> None:
    """Asks all of them. Raises as they do, with the verifier's name."""
    for known, verifier in verifiers.items():
        try:
            reason = await verifier.verify(name, target)
        except PermissionDenied as error:
            log.warning("image verifier %s refuses %s@%s: %s", known, name, target.digest, error)
            raise PermissionDenied(
                f"image verifier {known} refuses {name} ({target.digest}): {error}"
            ) from error
        except FailedPrecondition as error:
            raise FailedPrecondition(
                f"image verifier {known} did not judge {name} ({target.digest}): {error}"
            ) from error
        log.debug("image verifier %s allows %s@%s: %s", known, name, target.digest, reason)


class Programs:
    """Implements Verifier by the programs in a folder, in order of their names. ``most`` are
    called, below 0 all; without the folder, or with nothing in it, every image may be pulled."""

    def __init__(self, folder: str, most: int, seconds: float) -> None:
        self._folder = folder
        self._most = most
        self._seconds = seconds

    async def verify(self, name: str, target: Descriptor) -> str:
        """See Verifier."""
        try:
            found = sorted(await asyncio.to_thread(os.listdir, self._folder))
        except FileNotFoundError:
            return f"there is no {self._folder}"
        except OSError as error:
            raise FailedPrecondition(f"{self._folder}: {error.strerror}") from error
        called = found if self._most < 0 else found[: self._most]
        if len(called) < len(found):
            log.warning(
                "%s has %s image verifiers, of which %s are called (max_verifiers)",
                self._folder,
                len(found),
                len(called),
            )
        reasons = []
        for program in called:
            status, said = await self._asked(program, name, target)
            if status:
                raise PermissionDenied(f"{program}: exit status {status}: {said}")
            reasons.append(f"{program}: {said}")
        return "; ".join(reasons)

    async def _asked(self, program: str, name: str, target: Descriptor) -> tuple[int, str]:
        """The exit status and what it printed. Raises FailedPrecondition where it does not run,
        does not end, or is ended by a signal."""
        arguments = ("-name", name, "-digest", target.digest, "-stdin-media-type", _STDIN_TYPE)
        try:
            process = await asyncio.create_subprocess_exec(
                os.path.join(self._folder, program),  # noqa: PTH118 - a program's own path
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise FailedPrecondition(f"{program}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._seconds):
                said = await _conversed(process, program, target)
                status = await process.wait()
        except TimeoutError as error:
            raise FailedPrecondition(f"{program}: no answer in {self._seconds:g} s") from error
        finally:
            await _ended(process)
        if status < 0:
            raise FailedPrecondition(f"{program}: ended by signal {-status}")
        return status, said


async def _conversed(process: asyncio.subprocess.Process, program: str, target: Descriptor) -> str:
    """What it prints, until it closes its outputs, also where it does not read its input."""
    stdin = cast(asyncio.StreamWriter, process.stdin)
    stdout = cast(asyncio.StreamReader, process.stdout)
    stderr = cast(asyncio.StreamReader, process.stderr)
    out, err, _ = await asyncio.gather(_read(stdout), _read(stderr), _written(stdin, target))
    for line in err.splitlines():
        log.debug("image verifier %s: %s", program, line)
    return out


async def _written(stdin: asyncio.StreamWriter, target: Descriptor) -> None:
    with contextlib.suppress(ConnectionError):  # it need not read
        stdin.write(msgspec.json.encode(target) + b"\n")
        await stdin.drain()
    stdin.close()


async def _read(stream: asyncio.StreamReader) -> str:
    """The beginning of it; the rest is read and dropped, so that no writer is cut short."""
    kept = bytearray()
    more = False
    while piece := await stream.read(_PIECE):
        room = _MOST_OUTPUT - len(kept)
        kept += piece[:room]
        more = more or len(piece) > room
    text = kept.decode(errors="replace").strip()
    return f"{text} (there was more)" if more else text


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Ends it, with all that it has started and that still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
