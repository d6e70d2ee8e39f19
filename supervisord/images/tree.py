"""Images in the content store: documents, and what hangs below them."""

from __future__ import annotations

from collections.abc import Sequence

from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import NotFound
from supervisord.contracts.scope import Scope

from .oci import documents
from .oci.documents import LARGEST_CONFIG, LARGEST_MANIFEST, Descriptor
from .oci.platforms import Platform


class Tree:
    """Reads one namespace's images."""

    def __init__(self, content: ContentStore, scope: Scope) -> None:
        self._content = content
        self._scope = scope

    async def document(self, target: Descriptor, limit: int = LARGEST_MANIFEST) -> bytes:
        """Raises NotFound, ResourceExhausted above the limit."""
        return await self._content.read_blob(self._scope, target.digest, limit)

    async def has(self, target: Descriptor) -> bool:
        """Whether the blob is here."""
        try:
            await self._content.info(self._scope, target.digest)
        except NotFound:
            return False
        return True

    async def manifest(self, target: Descriptor) -> documents.Manifest:
        """Raises NotFound, InvalidArgument."""
        return documents.manifest(await self.document(target), target.digest)

    async def index(self, target: Descriptor) -> documents.Index:
        """Raises NotFound, InvalidArgument."""
        return documents.index(await self.document(target), target.digest)

    async def children(self, target: Descriptor) -> Sequence[Descriptor]:
        """Of an index or a manifest; nothing has none. Raises NotFound, InvalidArgument."""
        if target.is_index:
            return (await self.index(target)).manifests or ()
        if target.is_manifest:
            manifest = await self.manifest(target)
            return [manifest.config, *(manifest.layers or ())]
        return ()

    async def platform(self, target: Descriptor) -> Platform | None:
        """Of a manifest: what its index says, else what its config says."""
        if target.target is not None:
            return target.target
        manifest = await self.manifest(target)
        data = await self.document(manifest.config, LARGEST_CONFIG)
        return documents.config(data, manifest.config.digest).platform
