"""The records of images: names, and what they stand for."""

from __future__ import annotations

import grpc

from protos.containerd.services.images.v1 import images_pb2

from ..connection import Connection
from ..errors import CliError, is_code


def get_image(daemon: Connection, name: str) -> images_pb2.Image:
    """The record of an image. Raises CliError naming it where there is none."""
    try:
        return daemon.images.Get(images_pb2.GetImageRequest(name=name)).image
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            raise CliError(
                f'image "{name}": not found in namespace {daemon.namespace} (sctl images ls)'
            ) from None
        raise
