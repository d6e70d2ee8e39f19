"""containerd.services.transfer.v1: images between registries, the store and archives.

Sources and destinations are typed values; credentials, progress and archives go over streams that
the client has opened (containerd.services.streaming.v1) and names by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from protos.containerd.services.transfer.v1 import transfer_pb2 as pb
from protos.containerd.types import types_pb2
from protos.containerd.types.transfer import transfer_pb2 as types
from supervisord.contracts.errors import Cancelled, InvalidArgument
from supervisord.contracts.streams import Stream, StreamGetter
from supervisord.contracts.typed import pack
from supervisord.images.ends import End, Export, Import, NameRule, Registry, Store, UnpackInto
from supervisord.images.oci import platforms
from supervisord.images.oci.platforms import Platform
from supervisord.images.progress import Progress, Report
from supervisord.images.registry.connections import Access
from supervisord.images.transfers import Transfers
from supervisord.streaming.octets import Sender, received

from .call import Call
from .transfer_auth import StreamKeeper

M = TypeVar("M", bound=Message)


class TransferService:
    """Decodes both ends, and has the image moved."""

    def __init__(self, transfers: Transfers, streams: StreamGetter) -> None:
        self._transfers = transfers
        self._streams = streams

    async def transfer(self, call: Call, request: pb.TransferRequest) -> Empty:
        source = self._end(call, request.source, "source")
        destination = self._end(call, request.destination, "destination")
        id = request.options.progress_stream
        if not id:
            await self._transfers.transfer(call.scope, source, destination)
            return Empty()
        stream = self._streams.get(call.scope.namespace, id)
        try:
            report = _reporting(stream)
            await self._transfers.transfer(call.scope, source, destination, report)
        finally:
            await stream.close()  # which tells the client that this was all
        return Empty()

    def _end(self, call: Call, value: Any, field: str) -> End:
        name = value.type_url.rpartition("/")[2]
        reader = self._readers.get(name)
        if reader is None:
            known = ", ".join(self._readers)
            raise InvalidArgument(f"{field}: {name!r} is not one of {known}")
        return reader(self, call, value, field)

    def _registry(self, call: Call, value: Any, field: str) -> Registry:
        message = _decoded(value, types.OCIRegistry, field)
        return registry_of(self._streams, call.scope.namespace, message, field)

    def _store(self, call: Call, value: Any, field: str) -> Store:
        message = _decoded(value, types.ImageStore, field)
        return Store(
            message.name,
            dict(message.labels),
            _platforms(message.platforms),
            message.all_metadata,
            message.manifest_limit,
            [_rule(one) for one in message.extra_references],
            [UnpackInto(_platform(one.platform), one.snapshotter) for one in message.unpacks],
        )

    def _import(self, call: Call, value: Any, field: str) -> Import:
        message = _decoded(value, types.ImageImportStream, field)
        stream = self._streams.get(call.scope.namespace, message.stream)
        return Import(received(stream), message.media_type, message.force_compress)

    def _export(self, call: Call, value: Any, field: str) -> Export:
        message = _decoded(value, types.ImageExportStream, field)
        stream = self._streams.get(call.scope.namespace, message.stream)
        return Export(
            Sender(stream),
            message.media_type,
            _platforms(message.platforms),
            message.all_platforms,
            message.skip_compatibility_manifest,
            message.skip_non_distributable,
        )

    _readers: ClassVar[dict[str, Callable[[TransferService, Call, Any, str], End]]] = {
        types.OCIRegistry.DESCRIPTOR.full_name: _registry,
        types.ImageStore.DESCRIPTOR.full_name: _store,
        types.ImageImportStream.DESCRIPTOR.full_name: _import,
        types.ImageExportStream.DESCRIPTOR.full_name: _export,
    }


def registry_of(
    streams: StreamGetter, namespace: str, message: types.OCIRegistry, field: str
) -> Registry:
    """Raises InvalidArgument, NotFound (a stream)."""
    resolver = message.resolver
    if resolver.default_scheme not in ("", "http", "https"):
        raise InvalidArgument(
            f"{field}.resolver.default_scheme: must be http or https: {resolver.default_scheme!r}"
        )
    access = Access(
        [resolver.host_dir] if resolver.host_dir else [],
        resolver.default_scheme,
        dict(resolver.headers),
    )
    if resolver.auth_stream:
        stream = streams.get(namespace, resolver.auth_stream)
        keeper = StreamKeeper(stream, message.reference)
        access = Access(access.roots, access.scheme, access.headers, keeper)
    return Registry(message.reference, access)


def _reporting(stream: Stream) -> Report:
    """Reports as messages of the stream, as long as somebody listens."""
    listening = True

    async def report(progress: Progress) -> None:
        nonlocal listening
        if listening:
            try:
                await stream.send(pack(_progress(progress)))
            except Cancelled:
                listening = False  # the transfer goes on without anybody watching

    return report


def _decoded(value: Any, kind: type[M], field: str) -> M:
    try:
        return kind.FromString(value.value)
    except DecodeError as error:
        raise InvalidArgument(f"{field}: malformed {kind.DESCRIPTOR.full_name}: {error}") from error


def _platform(value: types_pb2.Platform) -> Platform:
    return platforms.normal(value.os, value.architecture, value.variant, value.os_version)


def _platforms(values: Iterable[types_pb2.Platform]) -> Sequence[Platform]:
    return [_platform(value) for value in values]


def _rule(value: types.ImageReference) -> NameRule:
    return NameRule(
        value.name,
        value.is_prefix,
        value.allow_overwrite,
        value.add_digest,
        value.skip_named_digest,
    )


def _progress(value: Progress) -> types.Progress:
    message = types.Progress(
        event=value.event,
        name=value.name,
        parents=value.parents,
        progress=value.progress,
        total=value.total,
    )
    if value.descriptor is not None:
        message.desc.media_type = value.descriptor.media_type
        message.desc.digest = value.descriptor.digest
        message.desc.size = value.descriptor.size
        message.desc.annotations.update(value.descriptor.annotations or {})
    return message
