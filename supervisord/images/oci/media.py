"""Media types: what kind of thing a descriptor points at, by OCI's names and docker's."""

from __future__ import annotations

_OCI = "application/vnd.oci.image"
_DOCKER = "application/vnd.docker"

INDEX = f"{_OCI}.index.v1+json"
MANIFEST = f"{_OCI}.manifest.v1+json"
CONFIG = f"{_OCI}.config.v1+json"
LAYER = f"{_OCI}.layer.v1.tar"
DOCKER_LIST = f"{_DOCKER}.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = f"{_DOCKER}.distribution.manifest.v2+json"
DOCKER_CONFIG = f"{_DOCKER}.container.image.v1+json"
DOCKER_LAYER = f"{_DOCKER}.image.rootfs.diff.tar"
DOCKER_FOREIGN = f"{_DOCKER}.image.rootfs.foreign.diff.tar"
UNKNOWN = "application/octet-stream"

DOCKER_SCHEMA1 = f"{_DOCKER}.distribution.manifest.v1+prettyjws"
SCHEMA1 = frozenset((DOCKER_SCHEMA1, f"{_DOCKER}.distribution.manifest.v1+json"))
"""Docker's first manifests, which containerd 2 does not read either."""

INDEXES = frozenset((INDEX, DOCKER_LIST))
MANIFESTS = frozenset((MANIFEST, DOCKER_MANIFEST))
CONFIGS = frozenset((CONFIG, DOCKER_CONFIG))

ACCEPTED = (DOCKER_MANIFEST, DOCKER_LIST, MANIFEST, INDEX)
"""What a registry is asked for by tag."""


def is_layer(media_type: str) -> bool:
    """Whether it is a layer of a root filesystem, in whatever compression."""
    return media_type.startswith(
        (LAYER, f"{_OCI}.layer.nondistributable.v1.tar", DOCKER_LAYER)
    ) or (media_type.startswith(DOCKER_FOREIGN))


def is_nondistributable(media_type: str) -> bool:
    """Whether a registry need not have it, because its maker allows no copies."""
    return ".nondistributable." in media_type or media_type.startswith(DOCKER_FOREIGN)
