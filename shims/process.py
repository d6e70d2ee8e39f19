"""One process of a container, init or exec: its phase, pid, streams and end."""

from __future__ import annotations

import errno
import os

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument, NotFound, Unknown
from supervisord.linux.process import pidfd_send_signal

from .loop import Future, Lock, Loop
from .machine import Event, Machine, Phase
from .reaper import Exit
from .stdio import Stdio, Wishes

_STATUS = {
    Phase.CREATED: "CREATED",
    Phase.STARTING: "CREATED",
    Phase.STARTING_EXITED: "CREATED",
    Phase.DELETING_CREATED: "CREATED",
    Phase.RUNNING: "RUNNING",
    Phase.PAUSING: "PAUSING",
    Phase.PAUSING_EXITED: "PAUSING",
    Phase.PAUSED: "PAUSED",
    Phase.RESUMING: "PAUSED",
    Phase.RESUMING_EXITED: "PAUSED",
}


class Process:
    """State of one process. ``container`` drives it; nothing here runs the runtime."""

    def __init__(self, loop: Loop, id: str, wishes: Wishes, stdio: Stdio, *, is_exec: bool) -> None:
        self.id = id
        self.wishes = wishes
        self.stdio = stdio
        self.machine = Machine(is_exec=is_exec)
        self.pid = 0
        self.pidfd = -1
        """Names the process where it is no child of ours, whose pid may be reused unseen."""
        self.exit: Exit | None = None
        """Set as soon as it has ended; ``ended`` follows when that may be told."""
        self.ended: Future[Exit] = Future(loop)
        self.gone: Future[Exit] = Future(loop)
        self.lock = Lock(loop)

    @property
    def status(self) -> str:
        """The name of the state as clients see it (containerd.v1.types.Status)."""
        return _STATUS.get(self.machine.phase, "STOPPED")

    def left(self, exit: Exit) -> None:
        """It has ended."""
        self.exit = exit
        self.gone.set(exit)

    def announce(self) -> Exit:
        """Its end may be told now."""
        exit = self.exit or Exit(self.pid, 255, 0)
        self.stdio.exited()
        self.ended.set(exit)
        return exit

    def signal(self, number: int) -> None:
        """Sends a signal to this process alone.

        Raises NotFound when it has ended, FailedPrecondition when it has not begun,
        InvalidArgument for no signal."""
        if self.exit is not None:
            raise NotFound("process already finished")
        self.machine.feed(Event.KILL)
        if not self.pid:  # to be restored: the kernel would take 0 for all of us
            raise FailedPrecondition("process not created")
        try:
            if self.pidfd < 0:
                os.kill(self.pid, number)  # not reaped, so the pid is still this process's
            else:
                pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise NotFound("process already finished") from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise InvalidArgument(f"signal: {number} is no signal") from error
            raise Unknown(f"unknown error after kill: {error.strerror}") from error
