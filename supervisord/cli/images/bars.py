"""Bars of a transfer on a terminal: a line for each layer, and one for all of them.

A narrow terminal has fewer columns instead of broken ones. Imported only where there is a terminal:
rich takes longer than all the rest of sctl's start.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Table
from rich.text import Text

from ..output import human_bytes

TOTAL = "total"
_WIDE, _MIDDLE = 90, 66
_NO_PARTS = frozenset({"here", "there", "reading", "read"})
"""What is no part of what has to come."""
_ENDS = frozenset({"downloaded", "unpacked", "here", "uploaded", "there", "read"})


class _Name(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True)


class _State(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['state']:<11}", no_wrap=True)


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:>3.0f}%", no_wrap=True)


class _Amount(ProgressColumn):
    """How much of how much, in one unit."""

    def render(self, task: Task) -> Text:
        whole = human_bytes(int(task.total or 0))
        if task.finished:
            return Text(f"{whole:>19}", no_wrap=True)
        return Text(f"{human_bytes(int(task.completed)):>8} / {whole:>8}", no_wrap=True)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = None if task.finished else task.speed
        return Text(f"{human_bytes(int(speed)) + '/s' if speed else '':>10}", no_wrap=True)


class _Left(ProgressColumn):
    """The time until it is here."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = None if task.finished else task.time_remaining
        if left is None:
            return Text(f"{'':>7}")
        minutes, seconds = divmod(int(left), 60)
        return Text(f"{minutes:>4}:{seconds:02}", no_wrap=True)


class _Adapting(Progress):
    """The columns that there is room for."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        super().__init__(console=terminal, speed_estimate_period=10.0)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        # The sum stands last, although layers become known after it.
        tasks = sorted(tasks, key=lambda task: task.description == TOTAL)
        bar = BarColumn(bar_width=None)
        if self._terminal.width >= _WIDE:
            self.columns = (_Name(), bar, _State(), _Amount(), _Speed(), _Left())
        elif self._terminal.width >= _MIDDLE:
            self.columns = (_Name(), _State(), _Amount(), _Speed(), _Left())
        else:
            self.columns = (_Name(), _State(), _Percent())
        return super().make_tasks_table(tasks)


class Bars:
    """One bar per layer. Use it as a context manager."""

    def __init__(self) -> None:
        self._progress = _Adapting(Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        self._parts: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, name: str, state: str, done: int, total: int) -> None:
        """The state of one layer."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total or None, state=state)
        done = total if state in _ENDS else done
        self._progress.update(self._tasks[name], completed=done, total=total or None, state=state)
        self._parts[name] = (done, total)
        if state in _NO_PARTS:
            del self._parts[name]
        self._sum()

    def _sum(self) -> None:
        if self._all is None and len(self._parts) > 1:
            self._all = self._progress.add_task(TOTAL, total=None, state="")
        if self._all is None:
            return
        done, total = (sum(values) for values in zip((0, 0), *self._parts.values(), strict=True))
        self._progress.update(self._all, completed=done, total=total, visible=total > 0)
