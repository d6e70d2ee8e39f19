"""Images' names: which ones a transfer makes, and the records that it makes or moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.images import Descriptor, Image, ImageStore
from supervisord.contracts.scope import Scope

from .ends import NameRule, Store
from .oci import documents

log = logging.getLogger(__name__)

_PARENT = "containerd.io/gc.bref.image"
_EXPIRE = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True)
class Names:
    """What one target of a transfer is called."""

    name: str
    labels: Mapping[str, str]
    rules: Sequence[NameRule]

    def for_target(self, target: documents.Descriptor) -> Mapping[str, Mapping[str, str]]:
        """Labels by name. Names beyond the first live as long as that one does."""
        found: dict[str, Mapping[str, str]] = {}
        if self.name:
            found[self.name] = self.labels
        for rule in self.rules:
            if rule.is_prefix and not rule.add_digest:
                continue  # a prefix alone names nothing
            name = f"{rule.name}@{target.digest}" if rule.add_digest else rule.name
            found.setdefault(name, self._labels())
        return found

    def _labels(self) -> Mapping[str, str]:
        if not self.name:
            return self.labels
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return {**self.labels, _PARENT: self.name, _EXPIRE: now}


def names_of(store: Store) -> Names:
    """Raises InvalidArgument for a store that gives no name."""
    if not store.name and not store.names:
        raise InvalidArgument("destination: the image store needs a name")
    return Names(store.name, store.labels, store.names)


async def named(
    images: ImageStore,
    scope: Scope,
    name: str,
    target: documents.Descriptor,
    labels: Mapping[str, str],
) -> Image:
    """The name, from now on of this target. Raises InvalidArgument."""
    image = Image(
        name,
        Descriptor(target.media_type, target.digest, target.size, target.annotations or {}),
        labels,
    )
    while True:
        try:
            return await images.create(scope.namespace, image, lease=scope.lease)
        except AlreadyExists:
            try:
                return await images.update(scope.namespace, image, [], lease=scope.lease)
            except NotFound:
                log.debug("image %s went away just now", name)
