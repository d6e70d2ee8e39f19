"""Containers in the metadata database; implements contracts.containers.ContainerStore."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.any_pb2 import Any

from protos.containerd.events import events_pb2
from supervisord.contracts import filters as filter_language
from supervisord.contracts.containers import Container
from supervisord.contracts.errors import AlreadyExists, Internal, InvalidArgument, NotFound
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.typed import TypedValue

from . import container_records as records
from . import labels as label_rules
from . import references
from .commits import Commits, ensure_namespace
from .rows import readable

_EXTENSIONS = "extensions."
_MUTABLE = ("labels", "spec", "extensions", "image", "snapshotkey")


class Containers:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def get(self, namespace: str, id: str) -> Container:
        """Raises NotFound."""
        return _decoded(self.record(namespace, id), id)

    def record(self, namespace: str, id: str) -> bytes:
        """The serialized protobuf of one container. Raises NotFound."""
        return self._commits.read(lambda connection: _record(connection, namespace, id))

    def records(self, namespace: str, filters: Sequence[str]) -> Sequence[bytes]:
        """The serialized protobufs of all that match, in order of id. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        rows = self._commits.read(
            lambda c: c.execute(
                "SELECT record FROM containers WHERE namespace = ? ORDER BY id", (namespace,)
            ).fetchall()
        )
        if wanted.always:
            return [record for (record,) in rows]
        messages = readable(rows, lambda row: (row[0], records.parse(row[0])), "container")
        return [record for record, message in messages if wanted.match(records.adaptor(message))]

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Container]:
        """All that match, in order of id. Raises InvalidArgument."""
        return list(readable(self.records(namespace, filters), records.decode, "container"))

    async def create(self, namespace: str, container: Container) -> Container:
        """Creates the record, then publishes /containers/create.

        Raises InvalidArgument, AlreadyExists."""
        now = time.time_ns()
        made = _checked(replace(container, created_at=now, updated_at=now))
        record = records.encode(made)

        def insert(connection: sqlite3.Connection) -> None:
            ensure_namespace(connection, namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO containers VALUES (?, ?, ?)", (namespace, made.id, record)
            )
            if not done.rowcount:
                raise AlreadyExists(f'container "{made.id}": already exists')
            _refer(connection, namespace, made)

        await self._commits.write(insert)
        runtime = events_pb2.ContainerCreate.Runtime(name=made.runtime.name)
        if made.runtime.options:
            runtime.options.CopyFrom(_any(made.runtime.options))
        event = events_pb2.ContainerCreate(id=made.id, image=made.image, runtime=runtime)
        self._commits.publish(namespace, "/containers/create", event)
        return made

    async def update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> Container:
        """Changes the mutable fields and publishes /containers/update.

        Raises NotFound, InvalidArgument."""
        if not container.id:
            raise InvalidArgument("must specify a container id: invalid argument")

        def change(connection: sqlite3.Connection) -> Container:
            current = _decoded(_record(connection, namespace, container.id), container.id)
            changed = _checked(
                replace(_changed(current, container, fieldpaths), updated_at=time.time_ns())
            )
            connection.execute(
                "UPDATE containers SET record = ? WHERE namespace = ? AND id = ?",
                (records.encode(changed), namespace, changed.id),
            )
            _refer(connection, namespace, changed)
            return changed

        changed = await self._commits.write(change)
        event = events_pb2.ContainerUpdate(
            id=changed.id,
            image=changed.image,
            labels=changed.labels,
            snapshot_key=changed.snapshot_key,
        )
        self._commits.publish(namespace, "/containers/update", event)
        return changed

    async def delete(self, namespace: str, id: str) -> None:
        """Deletes the record, then publishes /containers/delete. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            done = connection.execute(
                "DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, id)
            )
            if not done.rowcount:
                raise _not_found(namespace, id)
            references.drop(connection, namespace, references.Node(references.CONTAINERS, id))

        await self._commits.write(remove, deleted=True)
        self._commits.publish(namespace, "/containers/delete", events_pb2.ContainerDelete(id=id))


def _not_found(namespace: str, id: str) -> NotFound:
    return NotFound(f'container "{id}" in namespace "{namespace}": not found')


def _record(connection: sqlite3.Connection, namespace: str, id: str) -> bytes:
    row = connection.execute(
        "SELECT record FROM containers WHERE namespace = ? AND id = ?", (namespace, id)
    ).fetchone()
    if row is None:
        raise _not_found(namespace, id)
    record: bytes = row[0]
    return record


def _decoded(record: bytes, id: str) -> Container:
    try:
        return records.decode(record)
    except ValueError as error:
        raise Internal(f'container "{id}": {error}') from error


def _any(value: TypedValue) -> Any:
    return Any(type_url=value.type_url, value=value.value)


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


def _refer(connection: sqlite3.Connection, namespace: str, container: Container) -> None:
    node = references.Node(references.CONTAINERS, container.id)
    references.replace(connection, namespace, node, edges(container))


def _checked(container: Container) -> Container:
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
    return replace(container, labels=label_rules.checked(container.labels, "container.labels"))


def _changed(current: Container, wanted: Container, fieldpaths: Sequence[str]) -> Container:
    """``current`` with the fields of ``wanted`` that the paths name. Raises InvalidArgument."""
    if not fieldpaths:
        fieldpaths = _MUTABLE
        if current.snapshotter != wanted.snapshotter:
            raise InvalidArgument("container.snapshotter: field is immutable")
        if current.runtime.name != wanted.runtime.name:
            raise InvalidArgument("container.runtime.name: field is immutable")
    labels = dict(current.labels)
    extensions = dict(current.extensions)
    for path in fieldpaths:
        if path.startswith(label_rules.LABELS):
            key = path.removeprefix(label_rules.LABELS)
            labels[key] = wanted.labels.get(key, "")
        elif path.startswith(_EXTENSIONS):
            key = path.removeprefix(_EXTENSIONS)
            if key in wanted.extensions:
                extensions[key] = wanted.extensions[key]
            else:
                extensions.pop(key, None)
        elif path == "labels":
            labels = dict(wanted.labels)
        elif path == "extensions":
            extensions = dict(wanted.extensions)
        elif path == "spec":
            current = replace(current, spec=wanted.spec)
        elif path == "image":
            current = replace(current, image=wanted.image)
        elif path == "snapshotkey":
            current = replace(current, snapshot_key=wanted.snapshot_key)
        else:
            raise InvalidArgument(f'cannot update "{path}" field on "{current.id}"')
    return replace(current, labels=labels, extensions=extensions)
