"""Images in the metadata database; implements contracts.images.ImageStore."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from protos.containerd.services.images.v1 import images_pb2
from supervisord.contracts import filters as filter_language
from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.identifiers import check_digest
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.scope import Scope

from . import labels as label_rules
from . import references
from .commits import Commits, ensure_namespace
from .rows import fetched, readable

_ANNOTATIONS = "annotations."
_COLUMNS = "name, media_type, digest, size, annotations, labels, created_at, updated_at"


class Images:
    """The store; see the contract for what each method promises. A time that is set in the given
    image (a client's SOURCE_DATE_EPOCH) is kept instead of the clock's."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def get(self, namespace: str, name: str) -> Image:
        """Raises NotFound."""
        return self._commits.read(lambda connection: _get(connection, namespace, name))

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Image]:
        """All that match, in order of name. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        rows = self._commits.read(
            lambda c: fetched(
                c,
                f"SELECT {_COLUMNS} FROM images WHERE namespace = ?",  # noqa: S608
                (namespace,),
                "name",
            )
        )
        images = readable(rows, from_row, "image")
        return [image for image in images if wanted.always or wanted.match(_adaptor(image))]

    async def create(self, namespace: str, image: Image, *, lease: str = "") -> Image:
        """Creates the record, then publishes /images/create.

        Raises InvalidArgument, AlreadyExists, NotFound (lease)."""
        now = image.created_at or time.time_ns()
        made = _checked(replace(image, created_at=now, updated_at=now))

        def insert(connection: sqlite3.Connection) -> None:
            ensure_namespace(connection, namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                _row(namespace, made),
            )
            if not done.rowcount:
                raise AlreadyExists(f'image "{made.name}": already exists')
            _refer(connection, namespace, made, lease)

        await self._commits.write(insert)
        event = images_pb2.ImageCreate(name=made.name, labels=made.labels)
        self._commits.publish(namespace, "/images/create", event)
        return made

    async def update(
        self, namespace: str, image: Image, fieldpaths: Sequence[str], *, lease: str = ""
    ) -> Image:
        """Changes labels, target, annotations; publishes /images/update.

        Raises NotFound, InvalidArgument."""
        if not image.name:
            raise InvalidArgument("image.name: must not be empty")

        def change(connection: sqlite3.Connection) -> Image:
            current = _get(connection, namespace, image.name)
            changed = _changed(current, image, fieldpaths)
            now = image.updated_at or time.time_ns()
            changed = _checked(replace(changed, created_at=current.created_at, updated_at=now))
            connection.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                _row(namespace, changed),
            )
            _refer(connection, namespace, changed, lease)
            return changed

        # It may leave an old target to nobody; as in containerd that alone starts no collection.
        changed = await self._commits.write(change)
        event = images_pb2.ImageUpdate(name=changed.name, labels=changed.labels)
        self._commits.publish(namespace, "/images/update", event)
        return changed

    async def delete(self, namespace: str, name: str, target: Descriptor | None = None) -> None:
        """Deletes the name, and only if it still points at ``target`` when that is given.
        Publishes /images/delete. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            # Not by _get: a damaged record can be deleted too.
            row = connection.execute(
                "SELECT digest FROM images WHERE namespace = ? AND name = ?", (namespace, name)
            ).fetchone()
            if row is None:
                raise NotFound(f'image "{name}": not found')
            if target is not None and target.digest not in ("", row[0]):
                raise NotFound(
                    f'image "{name}" has target {row[0]}, not {target.digest}: not found'
                )
            delete_row(connection, namespace, name)

        await self._commits.write(remove, deleted=True)
        self._commits.publish(namespace, "/images/delete", images_pb2.ImageDelete(name=name))


def delete_row(connection: sqlite3.Connection, namespace: str, name: str) -> None:
    """Deletes an image with what follows from it; also used by garbage collection."""
    connection.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
    references.drop(connection, namespace, references.Node(references.IMAGES, name))


def _get(connection: sqlite3.Connection, namespace: str, name: str) -> Image:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",  # noqa: S608
        (namespace, name),
    ).fetchone()
    if row is None:
        raise NotFound(f'image "{name}": not found')
    return from_row(row)


def from_row(row: tuple[Any, ...]) -> Image:
    """The image of a row. Raises DataLoss if it is damaged."""
    name, media_type, digest, size, annotations, labels, created_at, updated_at = row
    return Image(
        name=name,
        target=Descriptor(media_type, digest, size, label_rules.unpack(annotations)),
        labels=label_rules.unpack(labels),
        created_at=created_at,
        updated_at=updated_at,
    )


def _row(namespace: str, image: Image) -> tuple[Any, ...]:
    return (
        namespace,
        image.name,
        image.target.media_type,
        image.target.digest,
        image.target.size,
        label_rules.pack(image.target.annotations),
        label_rules.pack(image.labels),
        image.created_at,
        image.updated_at,
        references.expiry(image.labels, f'image "{image.name}"'),
    )


def edges(image: Image) -> list[references.Edge]:
    """What keeps what because of the image."""
    node = references.Node(references.IMAGES, image.name)
    target = references.Node(references.CONTENT, image.target.digest)
    return [
        references.Edge(node, target, flat=True),
        *references.label_edges(node, image.labels),
    ]


def _refer(connection: sqlite3.Connection, namespace: str, image: Image, lease: str) -> None:
    node = references.Node(references.IMAGES, image.name)
    references.replace(connection, namespace, node, edges(image), image.labels)
    if references.expires(image.labels):
        references.hold(connection, Scope(namespace, lease), node)


def _checked(image: Image) -> Image:
    """The image as it is kept. Raises InvalidArgument."""
    if not image.name:
        raise InvalidArgument("image.name: must not be empty")
    labels = label_rules.checked(image.labels, "image.labels")
    check_digest(image.target.digest, "image.target.digest")
    if image.target.size <= 0:
        raise InvalidArgument("image.target.size: must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("image.target.media_type: must be set")
    annotations = {key: value for key, value in image.target.annotations.items() if value}
    return replace(image, labels=labels, target=replace(image.target, annotations=annotations))


def _changed(current: Image, wanted: Image, fieldpaths: Sequence[str]) -> Image:
    """``current`` with the fields of ``wanted`` that the paths name. Raises InvalidArgument."""
    if not fieldpaths:
        return wanted
    labels = dict(current.labels)
    target = current.target
    for path in fieldpaths:
        if path.startswith(label_rules.LABELS):
            key = path.removeprefix(label_rules.LABELS)
            labels[key] = wanted.labels.get(key, "")
        elif path.startswith(_ANNOTATIONS):
            key = path.removeprefix(_ANNOTATIONS)
            annotations = dict(target.annotations)
            annotations[key] = wanted.target.annotations.get(key, "")
            target = replace(target, annotations=annotations)
        elif path == "labels":
            labels = dict(wanted.labels)
        elif path == "target":
            target = wanted.target
        elif path == "annotations":
            target = replace(target, annotations=dict(wanted.target.annotations))
        else:
            raise InvalidArgument(f'cannot update "{path}" field on image "{current.name}"')
    return replace(current, labels=labels, target=target)


def _adaptor(image: Image) -> filter_language.Adaptor:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "name":
                return image.name, bool(image.name)
            case "target" if len(path) > 1 and path[1] == "digest":
                return image.target.digest, bool(image.target.digest)
            case "target" if len(path) > 1 and path[1] == "mediatype":
                return image.target.media_type, bool(image.target.media_type)
            case "labels":
                return filter_language.lookup(path[1:], image.labels)
            case "annotations":
                return filter_language.lookup(path[1:], image.target.annotations)
        return "", False

    return field
