"""grpc.reflection: the descriptors of what is served, for grpcurl and its like.

The same messages serve ``grpc.reflection.v1`` and ``v1alpha``; they differ in name only. The
descriptors come from the pool that the generated stubs fill.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Set

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection_pb2 as pb

from .call import Call

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ServerReflection"]
V1 = "grpc.reflection.v1.ServerReflection"
_NOT_FOUND = 5
_UNIMPLEMENTED = 12


class ReflectionService:
    """Answers each question of a stream in turn. ``services`` answers the full names of all that
    are bound."""

    def __init__(self, services: Callable[[], Set[str]]) -> None:
        self._services = services
        self._pool = Default()

    async def server_reflection_info(
        self, call: Call, requests: AsyncIterator[pb.ServerReflectionRequest]
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for request in requests:
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                return _services(self._services())
            if kind == "file_by_filename":
                return _files(self._pool.FindFileByName(request.file_by_filename))
            if kind == "file_containing_symbol":
                symbol = request.file_containing_symbol
                return _files(self._pool.FindFileContainingSymbol(symbol))
            if kind == "file_containing_extension":
                wanted = request.file_containing_extension
                message = self._pool.FindMessageTypeByName(wanted.containing_type)
                found = self._pool.FindExtensionByNumber(message, wanted.extension_number)
                return _files(self._pool.FindFileContainingSymbol(found.full_name))
            if kind == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                message = self._pool.FindMessageTypeByName(name)
                numbers = sorted(e.number for e in self._pool.FindAllExtensions(message))
                extensions = pb.ExtensionNumberResponse(
                    base_type_name=name, extension_number=numbers
                )
                return pb.ServerReflectionResponse(all_extension_numbers_response=extensions)
        except KeyError as error:
            return _refusal(_NOT_FOUND, f"not found: {error.args[0] if error.args else kind}")
        return _refusal(_UNIMPLEMENTED, "the request asks for nothing that is known")


def _services(names: Set[str]) -> pb.ServerReflectionResponse:
    found = [pb.ServiceResponse(name=name) for name in sorted(names)]
    return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=found))


def _files(file: FileDescriptor) -> pb.ServerReflectionResponse:
    """The file and all that it imports, each once."""
    wanted, seen, serialized = [file], {file.name}, []
    while wanted:
        current = wanted.pop()
        serialized.append(current.serialized_pb)
        for other in current.dependencies:
            if other.name not in seen:
                seen.add(other.name)
                wanted.append(other)
    return pb.ServerReflectionResponse(
        file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=serialized)
    )


def _refusal(code: int, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(
        error_response=pb.ErrorResponse(error_code=code, error_message=message)
    )
