"""How snapshots on erofs are mounted: as a plain overlay of layers that are mounted already, or as
the images themselves, with an overlay that the mount manager fills in.

The second form, with its types and options, is containerd's (2.2, docs/mounts.md). Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisord.contracts.snapshots import Kind, Mount

from .layers import image_mount

MAX_SIZE_LABEL = "containerd.io/snapshot/max-size"


@dataclass(frozen=True, slots=True)
class Stack:
    """Images of the parents, nearest first; the upper and work directories of an active snapshot,
    or with ``size`` (bytes) the file that holds both; options before and behind the layers."""

    kind: Kind
    images: Sequence[str]
    upper: str = ""
    work: str = ""
    writable: str = ""
    size: int = 0
    options: Sequence[str] = ()
    more: Sequence[str] = ()


def plain(stack: Stack, lowers: Sequence[str]) -> list[Mount]:
    """For layers that are mounted on ``lowers``."""
    view = stack.kind == Kind.VIEW
    if not lowers:
        return [Mount("bind", stack.upper, (*stack.options, "ro" if view else "rw", "rbind"))]
    if view and len(lowers) == 1:
        return [Mount("bind", lowers[0], (*stack.options, "ro", "rbind"))]
    upper = () if view else (f"workdir={stack.work}", f"upperdir={stack.upper}")
    lower = "lowerdir=" + ":".join(lowers)
    return [Mount("overlay", "overlay", (*stack.options, *upper, lower, *stack.more))]


def described(stack: Stack) -> list[Mount]:
    """For layers that are not; a view of one image needs no overlay."""
    layers = [image_mount(path) for path in stack.images]
    if stack.kind == Kind.VIEW and len(layers) == 1 and not stack.options:
        return layers
    if not layers:
        return _own(stack)
    options = list(stack.options)
    writable = [_writable(stack)] if stack.size else []
    if stack.size:
        options += [
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
        ]
    elif stack.kind == Kind.ACTIVE:
        options += [f"workdir={stack.work}", f"upperdir={stack.upper}"]
    first = len(writable)
    if len(layers) == 1:
        if stack.kind == Kind.VIEW:
            shown = ("{{ mount %d }}" % first, (*options, "ro", "rbind"))  # noqa: UP031 - braces
            return [*layers, Mount("format/bind", *shown)]
        options.append("lowerdir={{ mount %d }}" % first)  # noqa: UP031
    else:
        last = first + len(layers) - 1
        options.append("lowerdir={{ overlay %d %d }}" % (first, last))  # noqa: UP031
    overlay = Mount("format/mkdir/overlay", "overlay", (*options, *stack.more))
    return [*writable, *layers, overlay]


def _own(stack: Stack) -> list[Mount]:
    if not stack.size:
        return plain(stack, ())
    options = ("X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind")
    return [_writable(stack), Mount("format/mkdir/bind", "{{ mount 0 }}/upper", options)]


def _writable(stack: Stack) -> Mount:
    made = ("X-containerd.mkfs.fs=ext4", f"X-containerd.mkfs.size={stack.size}")
    return Mount("mkfs/ext4", stack.writable, (*made, "rw", "loop"))
