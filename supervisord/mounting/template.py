"""Texts with places for what was mounted before: ``lowerdir={{ overlay 0 2 }}``.

The words are those of containerd's ``format/`` mounts: ``source N``, ``target N`` and ``mount N``
of the active mount N (its mount point), and ``overlay A B``, the mount points from A to B with
colons between, in either direction. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.mounts import ActiveMount

_WORDS = {"source": 1, "target": 1, "mount": 1, "overlay": 2}


def filled(text: str, active: Sequence[ActiveMount]) -> str:
    """Raises InvalidArgument for a place that is malformed or names a mount that is not there."""
    parts: list[str] = []
    rest = text
    while "{{" in rest:
        before, _, rest = rest.partition("{{")
        body, end, rest = rest.partition("}}")
        if not end:
            raise InvalidArgument(f"mount: {text!r}: a place without an end")
        if body.startswith("- "):
            before, body = before.rstrip(), body[2:]
        if body.endswith(" -"):
            rest, body = rest.lstrip(), body[:-2]
        parts += [before, _value(body.split(), text, active)]
    return "".join([*parts, rest])


def _value(words: Sequence[str], text: str, active: Sequence[ActiveMount]) -> str:
    word, *numbers = words or [""]
    if _WORDS.get(word) != len(numbers) or not all(map(_is_number, numbers)):
        raise InvalidArgument(f"mount: {text!r}: {' '.join(words)!r} is no place that is known")
    chosen = [int(number) for number in numbers]
    for number in chosen:
        if not 0 <= number < len(active):
            raise InvalidArgument(
                f"mount: {text!r}: index out of bounds: {number}, has {len(active)} active mounts"
            )
    if word == "overlay":
        first, last = chosen
        step = 1 if first <= last else -1
        return ":".join(active[at].mount_point for at in range(first, last + step, step))
    found = active[chosen[0]]
    if word == "mount":
        return found.mount_point
    return found.mount.source if word == "source" else found.mount.target


def _is_number(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdecimal()
