"""Environment lists: what the flags say over what the image says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import CliError


def merge(defaults: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """``KEY=value`` replaces or adds in place; ``KEY`` alone removes one of the defaults."""
    result: dict[str, str] = {}
    for entry in defaults:
        result[entry.partition("=")[0]] = entry
    for entry in overrides:
        key, sign, _ = entry.partition("=")
        if sign:
            result[key] = entry
        else:
            result.pop(key, None)
    return list(result.values())


def read_file(path: str) -> list[str]:
    """The lines of an env file, without empty ones and comments. Raises CliError."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--env-file {path}: {error}") from None
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
