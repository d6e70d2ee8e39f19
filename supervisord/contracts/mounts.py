"""Activations: mounts that the daemon makes for somebody else, and takes away again.

A snapshotter may answer mounts that no mount(8) understands: types with prefixes
(``format/mkdir/overlay``), which prepare a mount from what was mounted before it, and types of
handlers (``loop``). ``activate`` makes all of a list up to the last one that needs it, under a
name, and answers the rest: system mounts, which the caller makes where it needs them.
``deactivate`` takes them away. Activations are resources of garbage collection
(``contracts.collectible``, kind ``mount``): what is under no lease and refers to nothing alive is
ended by the next collection. The rules are containerd's (2.2, docs/mounts.md).
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from .scope import Scope
from .snapshots import Mount


@dataclass(frozen=True, slots=True)
class ActiveMount:
    """A mount that was made: when (nanoseconds since the epoch), where, and what its handler has
    to say of it."""

    mount: Mount
    mounted_at: int
    mount_point: str
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Activation:
    """``active`` mounts, in the order in which they were made; ``system`` ones are the caller's.
    ``serial`` is another one for each activation, also of the same name."""

    name: str
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    serial: int = 0


@dataclass(frozen=True, slots=True)
class ActivateOptions:
    """``temporary``: all mounts are made, and the only system mount is a bind mount of the last.
    ``allowed``: types, or prefixes as ``format/*``, that the caller manages by itself."""

    labels: Mapping[str, str] = field(default_factory=dict)
    temporary: bool = False
    allowed: Sequence[str] = ()


class MountHandler(Protocol):
    """Makes mounts of one type, which need not be mounts of the kernel's."""

    async def mount(self, mount: Mount, target: str, active: Sequence[ActiveMount]) -> ActiveMount:
        """Makes it at ``target``, which is not there yet; ``active`` were made before it.

        Raises Unimplemented, InvalidArgument, Unknown, OSError; nothing is left then."""
        ...

    async def unmount(self, target: str) -> None:
        """Takes it away; one that is not there is done already. Raises Unavailable, OSError."""
        ...


class MountManager(Protocol):
    """Activations of a namespace."""

    def wanted(self, mounts: Sequence[Mount], options: ActivateOptions = ...) -> bool:
        """Whether these mounts need an activation at all."""
        ...

    async def activate(
        self, scope: Scope, name: str, mounts: Sequence[Mount], options: ActivateOptions = ...
    ) -> Activation:
        """Raises Unimplemented where all are system mounts, AlreadyExists, InvalidArgument,
        ResourceExhausted, Unknown; nothing is left then."""
        ...

    def deactivate(
        self, namespace: str, name: str, *, only: Activation | None = None
    ) -> Coroutine[None, None, None]:
        """Takes it away; with ``only``, unless it is gone, or another one by now. Nobody sees it
        from the call on, before it is awaited.

        Raises NotFound, Unavailable (what cannot be unmounted is tried again)."""
        ...

    def info(self, namespace: str, name: str) -> Activation:
        """Raises NotFound."""
        ...

    async def update(
        self, namespace: str, activation: Activation, fieldpaths: Sequence[str]
    ) -> Activation:
        """Changes labels (``labels``, ``labels.KEY``; all labels without a path).

        Raises NotFound, InvalidArgument for an immutable field."""
        ...

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Activation]:
        """All that match, in order of name. Raises InvalidArgument for a malformed filter."""
        ...

    def for_a_while(
        self, scope: Scope, mounts: Sequence[Mount]
    ) -> AbstractAsyncContextManager[Sequence[Mount]]:
        """System mounts in the place of ``mounts``, for the block. Raises as ``activate``, but
        not Unimplemented."""
        ...
