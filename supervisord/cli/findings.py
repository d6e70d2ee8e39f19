"""Shows what a check finds, as it comes: for ``sctl check``, and for ``supervisord check``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import Exit
from .images.progress import Bars
from .output import human_bytes, show, show_json

LEFT = 2
"""The exit code where something is wrong and was not put right."""

_INDENT = " " * 12
_FIELDS = ("kind", "namespace", "key", "problem", "detail", "remedy", "repaired")


class Findings:
    """Collects and shows the messages of one check."""

    def __init__(self, *, format: str) -> None:
        self._json = format == "json"
        self._records: list[dict[str, Any]] = []
        self._parts: dict[str, Any] = {}
        self._read = 0

    def follow(self, messages: Iterable[Any], bars: Bars) -> None:
        """Shows messages of ``supervisord.check.v1.RunResponse`` until their end."""
        for message in messages:
            self.take(message)
            if message.HasField("progress"):
                progress = message.progress
                bars.step(progress.part, progress.done, progress.total)

    def take(self, message: Any) -> None:
        """One message."""
        if message.HasField("progress"):
            self._parts[message.progress.part] = message.progress.total
            self._read = max(self._read, message.progress.size)
        elif message.HasField("finding"):
            self.add(message.finding)

    def add(self, finding: Any) -> None:
        """One more."""
        self._records.append({field: getattr(finding, field) for field in _FIELDS})
        if self._json:
            return
        where = f" in {finding.namespace}" if finding.namespace else ""
        show(f"{finding.problem.upper():<11} {finding.kind} {finding.key}{where}")
        show(f"{_INDENT}{finding.detail}")
        if finding.repaired:
            show(f"{_INDENT}repaired: {finding.remedy}")
        elif finding.remedy:
            show(f"{_INDENT}repair: {finding.remedy}")

    def end(self, *, repair: bool) -> None:
        """The last line, or all of the JSON. Raises Exit where something is left as it is."""
        left = sum(not record["repaired"] for record in self._records)
        if self._json:
            show_json({"findings": self._records, "checked": self._parts, "left": left})
        else:
            show(self._last_line(left, repair=repair))
        if left:
            raise Exit(LEFT)

    def _last_line(self, left: int, *, repair: bool) -> str:
        counts = [f"{count} {part}" for part, count in self._parts.items() if _things(part)]
        checked = ", ".join(counts) or "nothing"
        if self._read:
            checked += f", {human_bytes(self._read)} read"
        if not self._records:
            return f"All is well: {checked}."
        count = len(self._records)
        text = f"{count} problem{'s' * (count != 1)}, {count - left} repaired ({checked})."
        if left and not repair:
            text += " 'check --repair' puts right what can be."
        return text


def _things(part: str) -> bool:
    """Whether the numbers of a part are those of things that people know."""
    return part == "blobs" or part.startswith("snapshots")
