"""The media types of layers, and how their bytes are compressed.

The rules are containerd's: OCI types say their compression in a suffix, the oldest Docker types are
known to lie, so that the first bytes decide, and a type that says gzip or zstd may be either.
"""

from __future__ import annotations

from supervisord.contracts.errors import Unimplemented

OCI = "application/vnd.oci.image.layer.v1.tar"
OCI_GZIP = f"{OCI}+gzip"
OCI_ZSTD = f"{OCI}+zstd"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_DOCKER_TYPES = {
    kind + suffix for kind in (DOCKER, DOCKER_FOREIGN) for suffix in ("", ".gzip", ".zstd")
}
_WRITTEN = {"": "gzip", OCI_GZIP: "gzip", OCI: "none", OCI_ZSTD: "zstd"}


def reading(media_type: str) -> str:
    """How a layer of this type is read: ``none``, or ``auto`` for what its first bytes say.

    Raises Unimplemented for what is no layer, or is encrypted."""
    base, *suffixes = media_type.split("+")
    if "encrypted" in suffixes:
        raise Unimplemented(f"media type {media_type!r}: encrypted layers are not supported")
    if base in _DOCKER_TYPES:
        return "none" if suffixes else "auto"
    if base in (OCI, OCI_FOREIGN):
        return "auto" if {"gzip", "zstd"} & set(suffixes) else "none"
    raise Unimplemented(f"media type {media_type!r}: no processor for media-type")


def writing(media_type: str) -> tuple[str, str]:
    """The full media type and the compression of a layer to write; "" stands for gzip.

    Raises Unimplemented."""
    compression = _WRITTEN.get(media_type)
    if compression is None:
        raise Unimplemented(f"unsupported diff media type: {media_type}")
    return media_type or OCI_GZIP, compression
