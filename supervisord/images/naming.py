"""Images' names: which ones a transfer makes, and the records that it makes or moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.images import Descriptor, Image, ImageStore
from supervisord.contracts.scope import Scope

from .archive.exporting import NAME, REF
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

    @property
    def any_target(self) -> bool:
        """Whether a target is named that says no name itself."""
        return bool(self.name) or any(not rule.is_prefix or rule.add_digest for rule in self.rules)

    def of_target(self, target: documents.Descriptor) -> Mapping[str, Mapping[str, str]]:
        """Labels by name, for the one target of a transfer. Names beyond the first live as long as
        that one does."""
        found: dict[str, Mapping[str, str]] = {}
        if self.name:
            found[self.name] = self.labels
        for rule in self.rules:
            if rule.is_prefix and not rule.add_digest:
                continue  # a prefix alone names nothing
            name = f"{rule.name}@{target.digest}" if rule.add_digest else rule.name
            found.setdefault(name, self._labels())
        return found

    def of_annotations(self, target: documents.Descriptor) -> Sequence[str]:
        """Names for an image of an archive, by what its annotations say and the rules allow."""
        found: list[str] = []
        for rule in self.rules:
            if not rule.is_prefix:
                continue
            name = _annotated(target.annotations or {}, rule)
            if name:
                found.append(name)
            if rule.add_digest and not (name and rule.skip_named):
                found.append(f"{rule.name}@{target.digest}")
        return found

    def labels_of(self, name: str) -> Mapping[str, str]:
        """Of one of the names."""
        return self.labels if name == self.name else self._labels()

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


def of_image(image: Image) -> documents.Descriptor:
    """What a name stands for."""
    target = image.target
    return documents.Descriptor(
        target.media_type, target.digest, target.size, annotations=dict(target.annotations) or None
    )


def _annotated(annotations: Mapping[str, str], rule: NameRule) -> str:
    """containerd's own annotation counts as it is, or not at all; OCI's may be a tag alone."""
    whole = annotations.get(NAME, "")
    if whole:
        return whole if _allowed(whole, rule) == whole else ""
    tag = annotations.get(REF, "")
    return _allowed(tag, rule) if tag else ""


def _allowed(name: str, rule: NameRule) -> str:
    if not any(mark in name for mark in "/:@"):
        return f"{rule.name}:{name}" if rule.name else ""
    below = name == rule.name or (
        name.startswith(rule.name) and name[len(rule.name)] in "/:@" and bool(rule.name)
    )
    return name if below or rule.allow_overwrite else ""


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
