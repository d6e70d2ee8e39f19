"""Starts a created container.

A container that runc has made waits in the opening of a FIFO, ``exec.fifo`` in its state folder,
until somebody opens the other side and takes the byte that it writes; then the FIFO is removed.
``runc start`` does nothing else, so the shim does that itself and saves a process. Where anything
is not as expected, and with every other runtime, the runtime's own command is called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisord.contracts.errors import DeadlineExceeded

from . import log
from .bundle import remove
from .loop import READ, Future

if TYPE_CHECKING:
    from .container import Container

_SECONDS = 10.0


async def start(container: Container) -> None:
    """Lets init go. Raises Unknown (the runtime's words)."""
    runtime = container.runtime
    if runtime.is_runc and not container.bundle.mentions("poststart"):
        path = f"{runtime.root}/{container.id}/exec.fifo"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.debug("no exec.fifo", id=container.id, error=error)
        else:
            if await _let_go(container, fd):
                remove(path)
                return
    await runtime.start(container.id)


async def _let_go(container: Container, fd: int) -> bool:
    """Whether init has passed the FIFO."""
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
