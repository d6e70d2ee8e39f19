"""Checkpoints: a task's memory as an image in the content store, and a task made from one.

A checkpoint is a folder that the OCI runtime (by CRIU) writes. With ``image_path`` among the
options it stays where the client wants it; without, its tar and the container's spec become two
blobs, under the lease of the request, or else under one of their own that ends after an hour: what
the client is told of is still there when it refers to it. Creating from a checkpoint unpacks the
tar in the bundle, where Start finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import tarfile
import tempfile
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    Unimplemented,
)
from supervisord.contracts.images import Descriptor
from supervisord.contracts.leases import Lease, LeaseStore
from supervisord.contracts.scope import Scope
from supervisord.contracts.tasks import CreateTask
from supervisord.contracts.typed import TypedValue

from .bundle import Bundle
from .shim import Shim

IMAGE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"

_OPTIONS = "containerd.runc.v1.Options"
_CHECKPOINT_OPTIONS = "containerd.runc.v1.CheckpointOptions"
_CHUNK = 1 << 20
_KEPT = timedelta(hours=1)
_FROM_PATH = "RestoreFromPath"
_ROOTFS_DIFF = "rootfs-diff.tar"

M = TypeVar("M", options_pb2.Options, options_pb2.CheckpointOptions)


class Checkpoints:
    """Moves checkpoints between shims and the content store."""

    def __init__(self, content: ContentStore | None, leases: LeaseStore | None, state: str) -> None:
        self._content = content
        self._leases = leases
        self._state = state

    async def lay_out(
        self, namespace: str, request: CreateTask, options: TypedValue, bundle: Bundle
    ) -> str:
        """The folder of the checkpoint that a task is created from, "" for none.

        Raises NotFound (blob), InvalidArgument, DataLoss (a damaged or hostile tar)."""
        if options.type_url.rpartition("/")[2] == _OPTIONS:
            given = _parse(options_pb2.Options, options).criu_image_path
            if given:
                return given
        descriptor = request.checkpoint
        if descriptor is None or not (descriptor.digest or descriptor.annotations):
            return ""
        if _FROM_PATH in descriptor.annotations:
            path = descriptor.annotations[_FROM_PATH]
            if Path(path).with_name(_ROOTFS_DIFF).exists():
                raise Unimplemented(f"checkpoint: {_ROOTFS_DIFF} beside {path!r} is not applied")
            return path
        if descriptor.media_type != IMAGE:
            raise InvalidArgument(
                f"checkpoint: unsupported checkpoint type {descriptor.media_type!r}"
            )
        reader = await self._store().reader(Scope(namespace), descriptor.digest)
        try:
            target = f"{bundle.path}/checkpoint"
            await asyncio.to_thread(_unpack, reader.fileno(), target)
            return target
        finally:
            reader.close()

    def starts_at_once(self, request: CreateTask) -> bool:
        """Whether the client leaves the start of what it restores to the creation, as the one
        does that names a folder by an annotation (containerd's ``Container.Restore``)."""
        return request.checkpoint is not None and _FROM_PATH in request.checkpoint.annotations

    async def make(
        self, scope: Scope, shim: Shim, spec: TypedValue, options: TypedValue
    ) -> list[Descriptor]:
        """Checkpoints a task; answers what was written to the content store."""
        if options and options.type_url.rpartition("/")[2] != _CHECKPOINT_OPTIONS:
            raise InvalidArgument(f"options: must be {_CHECKPOINT_OPTIONS}")
        path = _parse(options_pb2.CheckpointOptions, options).image_path
        if path:
            await shim.checkpoint(path, options)
            return []
        self._store()  # before the work
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="checkpoint-", dir=self._state)
        try:
            image, tar = f"{folder}/image", f"{folder}/image.tar"
            Path(image).mkdir(0o700)
            await shim.checkpoint(image, options)
            await asyncio.to_thread(_pack, image, tar)
            held = await self._held(scope)
            with await asyncio.to_thread(open, tar, "rb") as file:
                written = await self._write(held, IMAGE, file)
            config = Any(type_url=spec.type_url, value=spec.value).SerializeToString()
            Path(tar).write_bytes(config)
            with await asyncio.to_thread(open, tar, "rb") as file:
                return [written, await self._write(held, CONFIG, file)]
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    def _store(self) -> ContentStore:
        if self._content is None:
            raise Unimplemented("checkpoints need a content store")
        return self._content

    async def _held(self, scope: Scope) -> Scope:
        """A scope whose lease keeps what is written."""
        if scope.lease or self._leases is None:
            return scope
        end = datetime.now(UTC) + _KEPT
        labels = {"containerd.io/gc.expire": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
        id = f"checkpoint-{secrets.token_hex(8)}"
        lease = await self._leases.create(scope.namespace, Lease(id, labels=labels))
        return Scope(scope.namespace, lease.id)

    async def _write(self, scope: Scope, media_type: str, file: BufferedReader) -> Descriptor:
        size = os.fstat(file.fileno()).st_size
        digest = await asyncio.to_thread(_digest, file)
        content = self._store()
        try:
            ref = f"checkpoint-{digest}"
            writer = await content.writer(scope, ref, total=size, media_type=media_type)
            try:
                await writer.truncate(0)
                while chunk := await asyncio.to_thread(file.read, _CHUNK):
                    await writer.write(chunk)
                await writer.commit(size, digest, {})
            finally:
                await writer.close()
        except AlreadyExists:
            return Descriptor(media_type, digest, size)
        return Descriptor(media_type, digest, size)


def _parse(kind: type[M], options: TypedValue) -> M:
    try:
        return kind.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"options: malformed {options.type_url}: {error}") from error


def _digest(file: BufferedReader) -> str:
    hash = hashlib.file_digest(file, "sha256")
    file.seek(0)
    return f"sha256:{hash.hexdigest()}"


def _pack(folder: str, target: str) -> None:
    with tarfile.open(target, "w") as tar:
        tar.add(folder, arcname=".")


def _unpack(fd: int, target: str) -> None:
    try:
        # a description of its own: the descriptor's offset is anybody's
        with tarfile.open(f"/proc/self/fd/{fd}", mode="r:*") as tar:
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise DataLoss(f"checkpoint: {error}") from error
