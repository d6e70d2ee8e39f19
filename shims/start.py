"""Starts a created container.

A created container waits at a FIFO, ``exec.fifo`` in the runtime's state folder. runc's opens it
for writing, until somebody opens the other side and takes the byte; then the FIFO is removed.
crun's reads from it; its FIFO is removed before the byte is written. ``runc start`` and ``crun
start`` do nothing else, so the shim does that itself and saves a process. Where anything is not as
expected, and with every other runtime, the runtime's own command is called.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH116, PTH208
from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisord.contracts.errors import DeadlineExceeded

from . import log
from .bundle import mentions, remove
from .loop import READ, Future

if TYPE_CHECKING:
    from .container import Container

_SECONDS = 10.0


async def start(container: Container) -> None:
    """Lets init go. Raises Unknown (the runtime's words)."""
    runtime = container.runtime
    folder = f"{runtime.root}/{container.id}"
    fifo = f"{folder}/exec.fifo"
    if runtime.name == "runc" and not mentions(container.bundle.path, "poststart"):
        done = await _take(container, fifo)
    elif runtime.name == "crun" and not mentions(folder, "poststart"):
        done = _give(container, fifo)
    else:
        done = False
    if not done:
        await runtime.start(container.id)


def finish(root: str, id: str, pid: int) -> bool:
    """Whether runc's init has passed its FIFO although that is there, by which runc would take it
    for created: the shim that let it go has died at once. The FIFO is removed then. While init
    waits, it has the FIFO among its descriptors. Raises OSError where init has ended."""
    fifo = f"{root}/{id}/exec.fifo"
    try:
        wanted = os.stat(fifo)
    except FileNotFoundError:
        return True
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            found = os.stat(f"{folder}/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return False
    remove(fifo)
    return True


async def _take(container: Container, fifo: str) -> bool:
    """Whether runc's init was let go."""
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.debug("no exec.fifo", id=container.id, error=error)
        return False
    if not await _let_go(container, fd):
        return False
    remove(fifo)
    return True


def _give(container: Container, fifo: str) -> bool:
    """Whether crun's init was let go: nobody else has the FIFO open, and what is in it stays there
    until init takes it."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.debug("nobody waits at exec.fifo", id=container.id, error=error)
        return False
    try:
        remove(fifo)
        os.write(fd, b"\0")
    except OSError as error:  # init has ended meanwhile
        log.debug("nobody takes from exec.fifo", id=container.id, error=error)
        return False
    finally:
        os.close(fd)
    return True


async def _let_go(container: Container, fd: int) -> bool:
    """Whether runc's init has passed the FIFO."""
    loop, gone = container.loop, container.init.gone
    passed: Future[None] = Future(loop)

    def ready(_: int = 0) -> None:
        passed.set(None)

    loop.watch(fd, READ, ready)
    gone.when_done(ready)
    try:
        await loop.within(_SECONDS, passed, "exec.fifo")
        return bool(os.read(fd, 1))
    except (DeadlineExceeded, BlockingIOError) as error:
        log.warning("init did not pass its fifo", id=container.id, error=error)
        return False
    finally:
        gone.forget(ready)
        loop.unwatch(fd)
        os.close(fd)
