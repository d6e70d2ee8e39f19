"""Debian's ``ctr`` against one socket and namespace, as a person would type it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    def rows(self) -> list[list[str]]:
        """The table on stdout without its head: words by line."""
        return [line.split() for line in self.out.splitlines()[1:] if line.strip()]


class Ctr:
    """``ctr -a SOCKET -n NAMESPACE``; a call runs one command."""

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self.namespace = namespace

    def command(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return ["ctr", "-a", self.address, "-n", self.namespace, *arguments]

    def __call__(
        self,
        *arguments: str,
        code: int | None = 0,
        input: bytes | None = None,
        timeout: float = 30,
    ) -> Result:
        """Runs a command; its exit code must be ``code`` (None: any)."""
        done = self.raw(*arguments, input=input, timeout=timeout)
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
        if code is not None:
            assert result.code == code, (
                f"ctr {' '.join(arguments)}: exit {result.code}\n{result.out}{result.err}"
            )
        return result

    def raw(
        self, *arguments: str, input: bytes | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[bytes]:
        """As a call, with the output in bytes and no check."""
        source: dict[str, Any] = (
            {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        )
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            timeout=timeout,
            check=False,
            **source,
        )

    def refused(self, *arguments: str, says: str | Sequence[str] = ()) -> Result:
        """Runs a command that must fail, with these words on its stderr."""
        result = self(*arguments, code=None)
        assert result.code != 0, f"ctr {' '.join(arguments)} was not refused: {result.out}"
        for word in [says] if isinstance(says, str) else says:
            assert word in result.err + result.out, f"{word!r} not in {result.err!r}"
        return result

    @contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that goes on during the block; it is ended after it."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def terminal(self, *arguments: str) -> Iterator[Terminal]:
        """A command on a terminal of its own."""
        main, other = pty.openpty()
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        terminal = Terminal(main, process)
        try:
            yield terminal
        finally:
            process.kill()
            process.wait()
            os.close(main)


class Terminal:
    """Our side of a pseudo terminal with a command behind it; carriage returns are dropped."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.descriptor = descriptor
        self.process = process
        self.seen = ""

    def send(self, text: str) -> None:
        """Types."""
        os.write(self.descriptor, text.encode())

    def expect(self, text: str, timeout: float = 10) -> str:
        """Reads until the text appears; answers everything seen and forgets it."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} did not appear in {self.seen!r}")
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def wait(self, timeout: float = 10) -> int:
        """Reads to the end; answers the command's exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, timeout: float) -> bool:
        if timeout <= 0 or not select.select([self.descriptor], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.seen += data.decode(errors="replace").replace("\r", "")
        return bool(data)
