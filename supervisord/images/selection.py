"""Which manifests of an index are wanted: by platform, the best ones first, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .oci.documents import Descriptor
from .oci.platforms import Platform, rank

ATTESTATION = "vnd.docker.reference.type"
"""An annotation of manifests that are no images, but say something of one."""


@dataclass(frozen=True, slots=True)
class Selection:
    """``platforms`` empty stands for all; ``limit`` 0 for any number of those that match."""

    platforms: Sequence[Platform] = ()
    limit: int = 0

    def of(self, manifests: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """The wanted ones. What says no platform is wanted, unless something else fits: only its
        config can tell."""
        if not self.platforms:
            return manifests[: self.limit or None]
        ranked = [
            (place, found)
            for place, found in ((self._rank(one), one) for one in manifests)
            if place is not None
        ]
        ranked.sort(key=lambda pair: pair[0])
        if any(one.target is not None for _, one in ranked):
            ranked = [pair for pair in ranked if pair[1].target is not None or pair[1].is_index]
        return [one for _, one in ranked][: self.limit or None]

    def wants(self, platform: Platform | None) -> bool:
        """Whether an image of that platform is wanted; one that does not say is."""
        if platform is None or not self.platforms:
            return True
        return any(rank(wanted, platform) is not None for wanted in self.platforms)

    def _rank(self, one: Descriptor) -> tuple[int, int] | None:
        offered = one.target
        if offered is None:
            return (len(self.platforms), 0)
        for number, wanted in enumerate(self.platforms):
            how = rank(wanted, offered)
            if how is not None:
                return (number, how)
        return None
