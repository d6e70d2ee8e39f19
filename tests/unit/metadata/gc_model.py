"""Garbage collection as containerd's documentation tells it, over plain dictionaries.

It shares nothing with the implementation: no table, no edge, no time but "past" and "future".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Labels = Mapping[str, str]
Thing = tuple[str, str]
"""``content``, ``snapshot``, ``image``, ``container``, ``sandbox`` or ``ingest``, and a name."""

PREFIX = "containerd.io/gc."
PAST, FUTURE = "2001-02-03T04:05:06Z", "2901-02-03T04:05:06Z"


@dataclass
class Snapshot:
    parent: str
    committed: bool
    labels: Labels


@dataclass
class Namespace:
    """What one namespace has. Every method that changes answers whether it was possible."""

    leases: dict[str, Labels] = field(default_factory=dict)
    held: dict[str, set[Thing]] = field(default_factory=dict)
    content: dict[str, Labels] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    images: dict[str, tuple[str, Labels]] = field(default_factory=dict)
    containers: dict[str, tuple[str, Labels]] = field(default_factory=dict)
    sandboxes: dict[str, Labels] = field(default_factory=dict)
    ingests: dict[str, bool] = field(default_factory=dict)
    """Whether it is kept for a day, having been opened without a lease."""

    # What clients do ---------------------------------------------------------------------------

    def _may(self, lease: str) -> bool:
        return not lease or lease in self.leases

    def _hold(self, lease: str, thing: Thing) -> None:
        if lease:
            self.held[lease].add(thing)

    def _release(self, lease: str, thing: Thing) -> None:
        if lease in self.held:
            self.held[lease].discard(thing)

    def create_lease(self, id: str, labels: Labels) -> bool:
        if id in self.leases:
            return False
        self.leases[id], self.held[id] = labels, set()
        return True

    def delete_lease(self, id: str) -> bool:
        self.held.pop(id, None)
        return self.leases.pop(id, None) is not None

    def hold(self, lease: str, thing: Thing) -> bool:
        if lease not in self.leases:
            return False
        self._hold(lease, thing)
        return True

    def release(self, lease: str, thing: Thing) -> bool:
        self._release(lease, thing)
        return lease in self.leases

    def write(self, name: str, labels: Labels, lease: str) -> bool:
        if not self._may(lease):
            return False
        self._hold(lease, ("content", name))
        if name in self.content:
            return False
        self.content[name] = labels
        return True

    def label(self, name: str, labels: Labels) -> bool:
        if name not in self.content:
            return False
        self.content[name] = labels
        return True

    def delete_blob(self, name: str, lease: str) -> bool:
        if self.content.pop(name, None) is None:
            return False
        self._release(lease, ("content", name))
        return True

    def prepare(self, key: str, parent: str, labels: Labels, lease: str) -> bool:
        if key in self.snapshots:
            if self._may(lease):
                self._hold(lease, ("snapshot", key))
            return False
        above = self.snapshots.get(parent)
        if (parent and (above is None or not above.committed)) or not self._may(lease):
            return False
        self._hold(lease, ("snapshot", key))
        self.snapshots[key] = Snapshot(parent, False, labels)
        return True

    def commit(self, name: str, key: str, labels: Labels, lease: str) -> bool:
        if name in self.snapshots:
            if self._may(lease):
                self._hold(lease, ("snapshot", name))
            return False
        active = self.snapshots.get(key)
        if active is None or active.committed or not self._may(lease):
            return False
        if active.parent and active.parent not in self.snapshots:
            return False
        self._hold(lease, ("snapshot", name))
        self._release(lease, ("snapshot", key))
        del self.snapshots[key]
        self.snapshots[name] = Snapshot(active.parent, True, labels)
        return True

    def remove(self, key: str, lease: str) -> bool:
        has_children = any(snapshot.parent == key for snapshot in self.snapshots.values())
        if key not in self.snapshots or has_children:
            return False
        del self.snapshots[key]
        self._release(lease, ("snapshot", key))
        return True

    def create_image(self, name: str, target: str, labels: Labels, lease: str) -> bool:
        expires = PREFIX + "expire" in labels
        if name in self.images or (expires and not self._may(lease)):
            return False
        self.images[name] = target, labels
        if expires:
            self._hold(lease, ("image", name))
        return True

    def delete_image(self, name: str) -> bool:
        return self.images.pop(name, None) is not None

    def create_container(self, id: str, key: str, labels: Labels) -> bool:
        if id in self.containers:
            return False
        self.containers[id] = key, labels
        return True

    def delete_container(self, id: str) -> bool:
        return self.containers.pop(id, None) is not None

    def create_sandbox(self, id: str, labels: Labels) -> bool:
        if id in self.sandboxes:
            return False
        self.sandboxes[id] = labels
        return True

    def delete_sandbox(self, id: str) -> bool:
        return self.sandboxes.pop(id, None) is not None

    def ingest(self, ref: str, lease: str) -> bool:
        if not self._may(lease):
            return False
        self._hold(lease, ("ingest", ref))
        self.ingests[ref] = self.ingests.get(ref, False) or not lease
        return True

    def abort(self, ref: str, lease: str) -> bool:
        if self.ingests.pop(ref, None) is None:
            return False
        self._release(lease, ("ingest", ref))
        return True

    # What a collection does --------------------------------------------------------------------

    def collect(self) -> None:
        """Takes away what is not live."""
        live = {thing for thing, _ in self.live()}
        for id in [
            id for id, labels in self.leases.items() if labels.get(PREFIX + "expire") == PAST
        ]:
            self.delete_lease(id)
        for kind, things in (
            ("content", self.content), ("snapshot", self.snapshots), ("image", self.images),
            ("ingest", self.ingests),
        ):  # fmt: skip
            for name in [name for name in things if (kind, name) not in live]:
                del things[name]

    def live(self) -> set[tuple[Thing, bool]]:
        """All things that are kept; each plainly, or only by a flat lease, or both."""
        seen: set[tuple[Thing, bool]] = set()
        waiting = list(self._roots())
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += self._kept_by(*one)
        return seen

    def _roots(self) -> Iterator[tuple[Thing, bool]]:
        for id, labels in self.leases.items():
            if labels.get(PREFIX + "expire") != PAST:
                for thing in self.held[id]:
                    yield thing, PREFIX + "flat" in labels and thing[0] != "ingest"
        for name, (_, labels) in self.images.items():
            if labels.get(PREFIX + "expire") != PAST:
                yield ("image", name), False
        for id in self.containers:
            yield ("container", id), False
        for id in self.sandboxes:
            yield ("sandbox", id), False
        for ref, lasting in self.ingests.items():
            if lasting:
                yield ("ingest", ref), False
        for kind, name, labels in self._labelled():
            if kind in ("content", "snapshot") and PREFIX + "root" in labels:
                yield (kind, name), False

    def _labelled(self) -> Iterator[tuple[str, str, Labels]]:
        for name, labels in self.content.items():
            yield "content", name, labels
        for name, snapshot in self.snapshots.items():
            yield "snapshot", name, snapshot.labels
        for name, (_, labels) in self.images.items():
            yield "image", name, labels
        for name, (_, labels) in self.containers.items():
            yield "container", name, labels
        for name, labels in self.sandboxes.items():
            yield "sandbox", name, labels

    def _kept_by(self, thing: Thing, flat: bool) -> Iterator[tuple[Thing, bool]]:
        kind, name = thing
        if kind == "snapshot" and name in self.snapshots and self.snapshots[name].parent:
            yield ("snapshot", self.snapshots[name].parent), flat
        if kind == "image" and name in self.images:
            yield ("content", self.images[name][0]), flat
        if flat:
            return
        if kind == "container" and name in self.containers:
            yield ("snapshot", self.containers[name][0]), False
        for other, its, labels in self._labelled():
            for label, value in labels.items():
                if (other, its) == thing:
                    for target in _refers(label, value):
                        yield target, False
                    if kind in ("content", "image"):
                        yield from self._condition(label, value)
                elif other != "sandbox" and thing in _back(label, value):
                    yield (other, its), False

    def _condition(self, label: str, value: str) -> Iterator[tuple[Thing, bool]]:
        """Only ``usedat<1h`` is drawn; a snapshot was used in the past, or will have been."""
        if label.startswith(PREFIX + "cond.snapshot"):
            key = value.partition("|")[2]
            snapshot = self.snapshots.get(key)
            used = snapshot.labels.get(PREFIX + "cond.value-usedat") if snapshot else None
            if used == FUTURE:
                yield ("snapshot", key), False


def _refers(label: str, value: str) -> Iterator[Thing]:
    for start, kind in (("ref.content", "content"), ("ref.image", "image")):
        if label == PREFIX + start or label.startswith((f"{PREFIX}{start}.", f"{PREFIX}{start}/")):
            yield kind, value
    if label.removeprefix(PREFIX).partition("/")[0] == "ref.snapshot.memory":
        yield "snapshot", value


def _back(label: str, value: str) -> list[Thing]:
    found = []
    for kind in ("content", "image", "container"):
        if label.removeprefix(PREFIX).replace("/", ".").split(".")[:2] == ["bref", kind]:
            found.append((kind, value))
    if label.removeprefix(PREFIX).partition("/")[0] == "bref.snapshot.memory":
        found.append(("snapshot", value))
    return found
