"""Containers in the metadata database; implements contracts.containers.ContainerStore."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from protos.containerd.events import events_pb2
from supervisord.contracts.containers import Container
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.identifiers import check_identifier

from . import container_records as records
from . import labels as label_rules
from . import references
from .commits import Commits
from .record_parts import packed
from .record_table import Kind, RecordTable, masked

_FIELDS = {"spec": "spec", "image": "image", "snapshotkey": "snapshot_key"}
_MUTABLE = ("labels", "extensions", *_FIELDS)


def edges(container: Container) -> list[references.Edge]:
    """What keeps what because of the container."""
    node = references.Node(references.CONTAINERS, container.id)
    found = list(references.label_edges(node, container.labels))
    if container.snapshotter:
        snapshot = references.Node(
            references.snapshots(container.snapshotter), container.snapshot_key
        )
        found.append(references.Edge(node, snapshot))
    return found


_KIND = Kind(
    references.CONTAINERS,
    "container",
    records.encode,
    records.decode,
    records.fields,
    edges,
    lambda namespace: f' in namespace "{namespace}"',
)


class Containers:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        table = self._table = RecordTable(commits, _KIND)
        self.get, self.record = table.get, table.record
        self.records, self.list = table.records, table.list

    async def create(self, namespace: str, container: Container) -> Container:
        """Creates the record, then publishes /containers/create.

        Raises InvalidArgument, AlreadyExists."""
        return (await self._create(namespace, container))[0]

    async def create_record(self, namespace: str, container: Container) -> bytes:
        """See the contract."""
        return (await self._create(namespace, container))[1]

    async def _create(self, namespace: str, container: Container) -> tuple[Container, bytes]:
        now = time.time_ns()
        made = _checked(container, now, now)
        record = await self._table.insert(namespace, made)
        runtime = events_pb2.ContainerCreate.Runtime(name=made.runtime.name)
        if made.runtime.options:
            runtime.options.CopyFrom(packed(made.runtime.options))
        event = events_pb2.ContainerCreate(id=made.id, image=made.image, runtime=runtime)
        self._commits.publish(namespace, "/containers/create", event)
        return made, record

    async def update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> Container:
        """Changes the mutable fields and publishes /containers/update.

        Raises NotFound, InvalidArgument."""
        return (await self._update(namespace, container, fieldpaths))[0]

    async def update_record(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> bytes:
        """See the contract."""
        return (await self._update(namespace, container, fieldpaths))[1]

    async def _update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> tuple[Container, bytes]:
        if not container.id:
            raise InvalidArgument("must specify a container id: invalid argument")

        def change(current: Container) -> Container:
            changed = _changed(current, container, fieldpaths)
            return _checked(changed, changed.created_at, time.time_ns())

        changed, record = await self._table.change(namespace, container.id, change)
        event = events_pb2.ContainerUpdate(
            id=changed.id,
            image=changed.image,
            labels=changed.labels,
            snapshot_key=changed.snapshot_key,
        )
        self._commits.publish(namespace, "/containers/update", event)
        return changed, record

    async def delete(self, namespace: str, id: str) -> None:
        """Deletes the record, then publishes /containers/delete. Raises NotFound."""
        await self._table.remove(namespace, id)
        self._commits.publish(namespace, "/containers/delete", events_pb2.ContainerDelete(id=id))


def _checked(container: Container, created_at: int, updated_at: int) -> Container:
    """The container as it is kept. Raises InvalidArgument."""
    check_identifier(container.id, "container.id")
    if "" in container.extensions:
        raise InvalidArgument("container.extensions: keys must not be zero-length")
    if not container.runtime.name:
        raise InvalidArgument("container.runtime.name: must be set")
    if not container.spec:
        raise InvalidArgument("container.spec: must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.snapshotter: must be set if container.snapshot_key is set")
    labels = label_rules.checked(container.labels, "container.labels")
    return replace(container, labels=labels, created_at=created_at, updated_at=updated_at)


def _changed(current: Container, wanted: Container, fieldpaths: Sequence[str]) -> Container:
    """``current`` with the fields of ``wanted`` that the paths name. Raises InvalidArgument."""
    if not fieldpaths:
        fieldpaths = _MUTABLE
        if current.snapshotter != wanted.snapshotter:
            raise InvalidArgument("container.snapshotter: field is immutable")
        if current.runtime.name != wanted.runtime.name:
            raise InvalidArgument("container.runtime.name: field is immutable")
    return masked(
        current,
        wanted,
        fieldpaths,
        _FIELDS,
        lambda path: InvalidArgument(f'cannot update "{path}" field on "{current.id}"'),
    )
