"""The terminal that ``sctl`` runs in: raw mode while a container has it, and its size."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raw() -> Iterator[None]:
    """Puts the terminal on stdin into raw mode and restores it; does nothing without one."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def size() -> tuple[int, int] | None:
    """Columns and rows; None without a terminal."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if columns and rows:
            return columns, rows
    return None
