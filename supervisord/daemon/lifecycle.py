"""The life of the process: start, tell the service manager, wait for a signal, stop in time."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence

from supervisord.contracts.errors import Error
from supervisord.contracts.plugins import Registration
from supervisord.linux import heap

from .boot import Daemon
from .config import Config
from .lock import RootTaken
from .notify import sd_notify
from .plugins import GraphError
from .stacks import stacks

log = logging.getLogger(__name__)

STOP_DEADLINE = 10.0
"""Seconds for a clean stop; what has not ended by then is left to the next start to repair."""

_COLLECT_AFTER = (10_000, 20, 50)
_KEPT = 4 << 20
"""Freed bytes that are kept for the next message; see services.traffic for when they go back."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def live(config: Config, registrations: Sequence[Registration]) -> int:
    """Runs until SIGTERM or SIGINT, and answers the exit status: 0 after a clean stop, 1 when the
    start failed or the stop took too long. A second signal while stopping ends at once. SIGHUP
    changes nothing, and SIGUSR1 has all stacks logged."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, _signalled, stopping, number)
    loop.add_signal_handler(signal.SIGHUP, _hung_up)
    loop.add_signal_handler(signal.SIGUSR1, _tell_stacks)
    try:
        daemon = Daemon(config, registrations)
    except GraphError as error:
        print(f"supervisord: {error}", file=sys.stderr)
        return 1
    status = 0
    gc.disable()  # nothing that a start makes is garbage
    try:
        await daemon.start()
        _settle_memory()
        sd_notify(f"READY=1\nMAINPID={os.getpid()}")
        await stopping.wait()
        sd_notify("STOPPING=1")
    except (RootTaken, GraphError, Error, OSError) as error:
        print(f"supervisord: {error}", file=sys.stderr)
        status = 1
    try:
        async with asyncio.timeout(STOP_DEADLINE):
            await daemon.stop()
    except TimeoutError:
        log.error("stop took too long", extra={"seconds": STOP_DEADLINE})
        os._exit(1)  # a thread that is stuck would keep the interpreter from ending
    else:
        if status == 0:
            log.info("stopped")
    return status


def _settle_memory() -> None:
    """What the start has made stays: the collector need never look at it again. And it looks less
    often, since a request leaves hardly any cycles; its pauses would be the slowest calls. The
    buffers of messages are used again."""
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    gc.enable()
    heap.keep_freed(_KEPT)


def _signalled(stopping: asyncio.Event, number: signal.Signals) -> None:
    if stopping.is_set():
        log.error("stopped by a second signal", extra={"signal": number.name})
        os._exit(1)
    log.info("stopping", extra={"signal": number.name})
    stopping.set()


def _hung_up() -> None:
    """The terminal went away, or somebody hopes for a reload: neither may end the daemon."""
    log.info("SIGHUP passed over: the configuration is read at the start only")


def _tell_stacks() -> None:
    log.info("stacks", extra={"stacks": stacks()})
