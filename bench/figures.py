"""What is measured: figures with their unit, their better direction and the agreed goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    ``goal`` is the ratio ours / theirs that was agreed: at most that where less is better, at
    least that where more is better; ``most`` is a value that ours must not exceed, whatever theirs
    is; None where there is none."""

    name: str
    unit: str
    more_is_better: bool = False
    goal: float | None = None
    most: float | None = None

    def verdict(self, ratio: float, value: float = 0.0) -> str:
        """``reached``, ``missed``, or "" without a goal."""
        if self.most is not None and value > self.most:
            return "missed"
        if self.goal is None:
            return "" if self.most is None else "reached"
        reached = ratio >= self.goal if self.more_is_better else ratio <= self.goal
        return "reached" if reached else "missed"


READY = Figure("ready after start", "ms")
DAEMON_RSS = Figure("daemon RSS", "MiB")
VERSION_P50 = Figure("rpc Version p50", "ms")
VERSION_P99 = Figure("rpc Version p99", "ms")
LIST_P50 = Figure("rpc Namespaces.List p50", "ms")
LIFECYCLE = (
    Figure("lifecycle create", "ms"),
    Figure("lifecycle start", "ms"),
    Figure("lifecycle wait", "ms"),
    Figure("lifecycle delete task", "ms"),
    Figure("lifecycle delete container", "ms"),
    Figure("lifecycle whole", "ms", goal=0.6),
)
BARE = Figure("the OCI runtime by itself", "ms")
OVER_BARE = Figure("lifecycle / runtime by itself", "x", most=1.25)
DEFAULT = Figure("lifecycle, default runtime", "ms", goal=0.35)
PARALLEL = Figure("lifecycles, 8 at a time", "/s", more_is_better=True, goal=1.5)
EXEC = Figure("exec whole", "ms", goal=0.7)
SHIM_PSS = Figure("shim PSS per container", "KiB", goal=0.6)
SHIM_RSS = Figure("shim RSS per container", "KiB", goal=1.0)
IDLE_RSS = Figure("daemon RSS per idle container", "KiB", most=30)
IDLE_PSS = Figure("shim PSS of many idle", "KiB")
IDLE_TASKS = Figure("List of idle tasks p50", "ms", most=10)
IDLE_CONTAINERS = Figure("List of idle containers p50", "ms", most=10)
IDLE_AWAKE = Figure("daemon, wakeups when idle", "/s")
IDLE_SHIMS_AWAKE = Figure("all idle shims, wakeups", "/s")
SHIM_MERGED = Figure("shim PSS, merging on", "KiB", goal=0.60)
STDOUT = Figure("1 GiB of stdout through a FIFO", "MiB/s", more_is_better=True, goal=1.0)
STDOUT_CPU = Figure("shim's processor time for it", "s")
CONTENT_WRITE = Figure("content write", "MiB/s", more_is_better=True, goal=1.5)
CONTENT_READ = Figure("content read", "MiB/s", more_is_better=True, goal=1.0)
CONTENT_WRITE_CPU = Figure("daemon's processor time, write", "ms/MiB", goal=0.7)
CONTENT_READ_CPU = Figure("daemon's processor time, read", "ms/MiB", goal=0.7)
CONTENT_STEPS = Figure("content write, an answer each", "MiB/s", more_is_better=True, goal=1.5)
CONTENT_SMALL = Figure("content read of 2 KiB p50", "ms")
CONTENT_SMALL_WRITE = Figure("content write of 2 KiB p50", "ms")
UNPACK = Figure("unpack of the layer", "s", goal=0.35)
CHAIN = Figure("128 layers: prepare and mount", "ms", goal=1.0)
CHAIN_PREPARE = Figure("128 layers: prepare", "ms")
CHAIN_COMMIT = Figure("128 layers: commit", "ms")
CHAIN_REMOVE = Figure("128 layers: remove", "ms")
STORE_CREATE = Figure("containers created, 16 at a time", "/s", more_is_better=True, goal=1.2)
STORE_LIST = Figure("List of 200 containers p50", "ms", goal=1.0)
STORE_DELETE = Figure("containers deleted, 16 at a time", "/s", more_is_better=True)
COLLECT = Figure("collection, 1 % of 11 000 dead", "ms", goal=1.0)
COLLECT_READ = Figure("longest read during them", "ms", most=20)
COLLECT_READ_P99 = Figure("read during them p99", "ms")
COLLECT_IDLE = Figure("longest read without them", "ms")
PULL_ONE = Figure("pull, one layer of 210 MiB", "s", goal=0.35)
PULL_TWELVE = Figure("pull, 12 layers of 20 MiB", "s", goal=0.35)
PULL_FAR = Figure("the same, 20 ms and 50 MB/s away", "s", goal=0.5)
PUSH = Figure("push of the one layer", "s", goal=0.7)
IMPORT = Figure("import of it from a tar", "s", goal=0.35)
WEIGHT_ONE = Figure("most memory, pull of a layer of 2 GiB", "MiB", most=150)
WEIGHT_MANY = Figure("the same, 16 layers of 128 MiB", "MiB", most=150)
WEIGHT_WAIT = Figure("longest call of others during both", "ms", most=50)
WEIGHT_WAIT_P99 = Figure("call of others during both p99", "ms")
EVENTS = Figure("events to 8 subscribers", "/s", more_is_better=True)
EVENTS_P99 = Figure("event latency p99", "ms")


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Results:
    """All that was measured: per figure and daemon, a value for each round."""

    def __init__(self) -> None:
        self._values: dict[Figure, dict[str, list[float]]] = {}

    def add(self, daemon: str, figure: Figure, value: float) -> None:
        """Notes one value."""
        self._values.setdefault(figure, {}).setdefault(daemon, []).append(value)

    def table(self, theirs: str, ours: str) -> str:
        """Medians, the ratio ours / theirs, the goal, and whether it is reached."""
        head = f"{'':34} {theirs:>12} {ours:>12} {'ratio':>7}  goal"
        lines = [head, "-" * len(head)]
        for figure, by in self._values.items():
            medians = {name: statistics.median(values) for name, values in by.items()}
            line = f"{figure.name + ', ' + figure.unit:34}"
            for name in (theirs, ours):
                line += f" {medians[name]:12.2f}" if name in medians else f" {'-':>12}"
            if theirs in medians and ours in medians and medians[theirs]:
                ratio = medians[ours] / medians[theirs]
                line += f" {ratio:7.2f}"
                sign = ">=" if figure.more_is_better else "<="
                if figure.most is not None:
                    line += f"  <= {figure.most:g}"
                if figure.goal is not None:
                    line += f"  {sign} {figure.goal:.2f}"
                line = f"{line} {figure.verdict(ratio, medians[ours])}".rstrip()
            lines.append(line)
        return "\n".join(lines)

    def as_json(self) -> dict[str, dict[str, list[float]]]:
        """The raw values, by the figure's name and unit."""
        return {f"{f.name}, {f.unit}": by for f, by in self._values.items()}

    def missed(self, theirs: str, ours: str) -> list[str]:
        """The figures whose goal was missed."""
        return [
            figure.name
            for figure, by in self._values.items()
            if theirs in by
            and ours in by
            and figure.verdict(
                statistics.median(by[ours]) / statistics.median(by[theirs]),
                statistics.median(by[ours]),
            )
            == "missed"
        ]
