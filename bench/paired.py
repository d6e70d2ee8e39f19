"""``./dev bench paired``: single lives on several daemons, one after the other in random order.

What else the machine does meets all of them alike, so the differences within a round tell more than
two medians do: how much a change has bought can be seen on a machine that is not quiet. ``--other
NAME=TREE`` adds our daemon out of another source tree, with its stubs. Times are milliseconds; the
processor time is that of a life with all that follows it, from the account of a control group.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import census, layers
from bench.cases import one_life
from bench.client import Client, unique
from bench.daemons import COMMANDS, running
from bench.figures import LIFECYCLE, quantile

_WARM = 5
_SETTLE_SECONDS = 0.03
_LEAVE_SECONDS = 5.0
_ACCOUNTS = ("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup")
_LABELS = [*(figure.name.removeprefix("lifecycle ") for figure in LIFECYCLE), "processor time"]


@dataclass(slots=True)
class Contender:
    """One daemon: how it is asked, what it used so far, and a row of milliseconds for each life."""

    client: Client
    used: Callable[[], float]
    rows: list[list[float]] = field(default_factory=list)

    def live(self) -> None:
        """One life, and a moment for what comes after it."""
        before = self.used()
        times = one_life(self.client)
        time.sleep(_SETTLE_SECONDS)
        self.rows.append([*times, self.used() - before])


class Account:
    """A control group that counts the processor time of what is started ``inside``."""

    def __init__(self, name: str) -> None:
        self._root = Path(next(folder for folder in _ACCOUNTS if Path(folder).is_dir()))
        self._group = self._root / name
        self._group.mkdir()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This process is in the group for as long as the block lasts."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._root / "cgroup.procs").write_text(str(os.getpid()))

    def used(self) -> float:
        """Milliseconds so far."""
        file = self._group / "cpuacct.usage"
        if file.exists():
            return int(file.read_text()) / 1e6
        return int((self._group / "cpu.stat").read_text().split()[1]) / 1e3

    def close(self) -> None:
        """Takes the group away, once what was inside has ended."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while (self._group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._group.rmdir()


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench paired", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="lives of each (60)")
    parser.add_argument("--runtime", default="runc", help="OCI runtime for all (runc); '' for any")
    parser.add_argument(
        "--other", action="append", default=[], metavar="NAME=TREE", help="another source tree"
    )
    arguments = parser.parse_args(argv)
    if not all("=" in other for other in arguments.other):
        parser.error("--other: must be NAME=TREE")
    return arguments


def _start(stack: ExitStack, name: str, tree: str, base: Path, runtime: str) -> Contender:
    group = unique("paired-")
    stack.callback(census.remove_group, group)
    account = Account(f"{group}-account")
    stack.callback(account.close)
    command = name if name in COMMANDS else "supervisord"
    variables = {"PYTHONPATH": tree} if tree else {}
    with account.inside():
        daemon = stack.enter_context(running(name, base, variables, command=command))
    client = Client(daemon.address, runtime, group)
    stack.callback(client.close)
    client.load_base(layers.busybox())
    return Contender(client, account.used)


def table(rows: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Medians, and behind the first the median of the differences to it, with both quartiles."""
    first, *others = rows
    head = f"{'ms':18}{first:>14}" + "".join(f"{name:>14}{'difference':>26}" for name in others)
    lines = [head, "-" * len(head)]
    for number, label in enumerate(_LABELS):
        columns = {name: [row[number] for row in found] for name, found in rows.items()}
        line = f"{label:18}{quantile(columns[first], 0.5):14.2f}"
        for name in others:
            apart = [b - a for a, b in zip(columns[first], columns[name], strict=True)]
            low, middle, high = (quantile(apart, share) for share in (0.25, 0.5, 0.75))
            line += f"{quantile(columns[name], 0.5):14.2f}"
            line += f"{middle:+10.2f} ({low:+6.1f} {high:+6.1f})"
        lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    arguments = _arguments(argv)
    wanted = {"supervisord": "", **dict(other.split("=", 1) for other in arguments.other)}
    wanted["containerd"] = ""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sv-bench-")))
        contenders = {
            name: _start(stack, name, tree, base, arguments.runtime)
            for name, tree in wanted.items()
        }
        for contender in contenders.values():
            for _ in range(_WARM):
                contender.live()
            contender.rows.clear()
        for _ in range(arguments.rounds):
            for contender in random.sample(list(contenders.values()), len(contenders)):
                contender.live()
    rows = {name: contender.rows for name, contender in contenders.items()}
    sys.stdout.write(table(rows) + "\n")
    return 0
