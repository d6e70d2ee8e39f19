"""What the daemon tells the machine about itself: sd_notify(3), and its OOM score."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

log = logging.getLogger(__name__)


def sd_notify(state: str) -> bool:
    """Sends ``READY=1`` and the like to the service manager that started us, if one did."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1.0)
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("service manager not told", extra={"state": state, "error": error})
        return False
    return True


def set_oom_score(score: int) -> None:
    """Sets oom_score_adj. Lowering it needs a privilege; without it we go on with a warning."""
    if score == 0:
        return
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        log.warning("oom score not changed", extra={"oom_score": score, "error": error})
