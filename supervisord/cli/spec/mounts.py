"""``--mount``: ``type=bind,src=/tmp,dst=/host,options=rbind:ro``."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from typing import Any

from ..errors import CliError

_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "options": "options",
}


def parse(text: str) -> dict[str, Any]:
    """One mount of a spec. Raises CliError naming the part that is wrong."""
    mount: dict[str, Any] = {}
    for field in next(csv.reader([text]), []):
        key, sign, value = field.partition("=")
        if not sign:
            raise CliError(f"--mount {text}: {field!r} is not of the form key=value")
        if key not in _KEYS:
            raise CliError(f"--mount {text}: unknown key {key!r}; known: {', '.join(_KEYS)}")
        mount[_KEYS[key]] = value.split(":") if key == "options" else value
    if not mount.get("destination"):
        raise CliError(f"--mount {text}: dst is missing")
    return mount


def apply(spec: dict[str, Any], texts: Sequence[str]) -> None:
    """Adds mounts; one at the destination of a default mount replaces it."""
    added = [parse(text) for text in texts]
    taken = {mount["destination"] for mount in added}
    kept = [
        mount for mount in spec["mounts"] if posixpath.normpath(mount["destination"]) not in taken
    ]
    spec["mounts"] = kept + added
