"""Which tasks share a shim: those that an annotation of their specs puts in one group.

A group is what containerd's runc shim takes for one: the annotation
``io.containerd.runc.v2.group``, else ``io.kubernetes.cri.sandbox-id``, else the sandbox of the
container's record, else the container is a group of its own, which others may name and join.
``creation`` joins, whoever takes a container off its shim leaves, and the last one to leave ends
the shim. Nothing here is on disk: ``recovery`` joins again what it finds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import msgspec

from supervisord.aio.locks import KeyedLock
from supervisord.contracts.containers import Container
from supervisord.contracts.errors import InvalidArgument

from .bundle import ShimRecord

SANDBOX = "sandbox/"
"""What a group's name begins with that is a sandbox: its shim is the sandbox, which ends it."""

ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
"""In order of rank."""

_SIGNS = tuple(f'"{name}"'.encode() for name in ANNOTATIONS)

Key = tuple[str, str]
"""A namespace, and in it the name of a group or the id of a container."""


class _Spec(msgspec.Struct):
    annotations: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(_Spec)


def group_of(container: Container) -> str:
    """The group that the container belongs to; "" for none but its own. Raises InvalidArgument."""
    spec = container.spec.value
    if any(sign in spec for sign in _SIGNS):  # most are spared the decoding
        try:
            annotations = _decoder.decode(spec).annotations or {}
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"spec: annotations must be strings: {error}") from error
        except RecursionError as error:
            raise InvalidArgument("spec: must not be nested so deeply") from error
        for name in ANNOTATIONS:
            if annotations.get(name):
                return annotations[name]
    return container.sandbox


@dataclass(slots=True)
class SharedShim:
    """A shim and whose it is. ``record`` is that of any member, without what is of init;
    ``forking`` is the fork under way that made it, where this daemon did."""

    name: Key
    record: ShimRecord
    forking: asyncio.Task[int] | None = None
    members: set[Key] = field(default_factory=set)


class Groups:
    """The shims of one daemon by group. Whoever looks for a shim in order to join it or to start
    one holds ``lock`` of the name meanwhile."""

    def __init__(self) -> None:
        self.lock = KeyedLock()
        self._by_name: dict[Key, SharedShim] = {}
        self._by_address: dict[str, SharedShim] = {}

    def find(self, name: Key) -> SharedShim | None:
        """The shim of a group, which may be dead."""
        return self._by_name.get(name)

    def has(self, address: str) -> bool:
        """Whether anybody is a member of the shim there."""
        return address in self._by_address

    def join(
        self,
        name: Key,
        member: Key,
        record: ShimRecord,
        forking: asyncio.Task[int] | None = None,
    ) -> SharedShim:
        """Makes a task a member of the shim at the record's address. From now on the group has
        this shim."""
        shared = self._by_address.get(record.address)
        if shared is None:
            common = replace(record, init_pid=0, init_start=0, restores=False, order="")
            shared = SharedShim(name, common, forking)
            self._by_address[record.address] = shared
        shared.members.add(member)
        self._by_name[name] = shared
        return shared

    def leave(self, member: Key, record: ShimRecord) -> bool:
        """Whether the shim has no other member: then nobody finds it any more, and the caller ends
        it. A sandbox's shim is never its tasks' to end."""
        own = not record.group.startswith(SANDBOX)
        shared = self._by_address.get(record.address)
        if shared is None:
            return own
        shared.members.discard(member)
        if shared.members:
            return False
        del self._by_address[record.address]
        self.forget(shared)
        return own

    def forget(self, shared: SharedShim) -> None:
        """The shim takes no new members."""
        if self._by_name.get(shared.name) is shared:
            del self._by_name[shared.name]
