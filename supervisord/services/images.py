"""containerd.services.images.v1: image records."""

from __future__ import annotations

from protos.containerd.services.images.v1 import images_pb2 as pb
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.images import Image, ImageStore
from supervisord.contracts.leases import Collector

from .call import Call
from .wire import from_descriptor, nanoseconds, paths, required, timestamp, to_descriptor


def _to_wire(image: Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=to_descriptor(image.target),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )


class ImagesService:
    """Hands each request to the store; a synchronous delete runs the collector afterwards.

    A client's SOURCE_DATE_EPOCH becomes the time that the store would else take from the clock.
    """

    def __init__(self, store: ImageStore, collector: Collector) -> None:
        self._store = store
        self._collector = collector

    async def get(self, call: Call, request: pb.GetImageRequest) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=_to_wire(self._store.get(call.namespace, request.name)))

    async def list(self, call: Call, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        images = self._store.list(call.namespace, request.filters)
        return pb.ListImagesResponse(images=[_to_wire(image) for image in images])

    async def create(self, call: Call, request: pb.CreateImageRequest) -> pb.CreateImageResponse:
        image = _named(request)
        created = await self._store.create(call.namespace, image, lease=call.scope.lease)
        return pb.CreateImageResponse(image=_to_wire(created))

    async def update(self, call: Call, request: pb.UpdateImageRequest) -> pb.UpdateImageResponse:
        image = _named(request)
        updated = await self._store.update(
            call.namespace, image, paths(request.update_mask), lease=call.scope.lease
        )
        return pb.UpdateImageResponse(image=_to_wire(updated))

    async def delete(self, call: Call, request: pb.DeleteImageRequest) -> None:
        target = from_descriptor(request.target) if request.HasField("target") else None
        await self._store.delete(call.namespace, request.name, target)
        if request.sync:
            await self._collector.collect()


def _named(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> Image:
    required(request.HasField("image"), "image")
    if not request.image.name:
        raise InvalidArgument("image.name: must not be empty")
    epoch = nanoseconds(request.source_date_epoch)
    return Image(
        name=request.image.name,
        target=from_descriptor(request.image.target),
        labels=dict(request.image.labels),
        created_at=epoch,
        updated_at=epoch,
    )
