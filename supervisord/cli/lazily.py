"""Modules that libraries import and a command hardly ever uses: they are loaded at their first use.

A command takes a tenth of a second to start, and half of that was for modules that nobody asks
anything: grpc brings asyncio, which brings ssl and subprocess, for a half of it that is not used
here. What does use one finds it whole. The library's own ``LazyLoader`` loads at the second import
already. Only for a program of its own: ``main`` begins it before anything else is imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # which takes longer to load than what is saved here

_SELDOM = frozenset(
    {
        "asyncio",  # of grpc
        "grpc.aio",
        "typing_extensions",
        "google.protobuf.text_format",  # of protobuf, for messages as text
        "google.protobuf.internal.python_message",  # where there is no protobuf in C
        "calendar",
        "bz2",  # of shutil
        "lzma",
        "inspect",  # of dataclasses
        "ipaddress",  # of urllib
        "hashlib",  # which loads OpenSSL
        "platform",
        "uuid",
        "supervisord.cli.images.blobs",  # of verbs that are only declared
        "supervisord.cli.images.manifests",
    }
)
_loading = threading.RLock()


class Seldom:
    """A finder of modules (importlib's MetaPathFinder)."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the usual finder does, with a loader that waits."""
        if name not in _SELDOM:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Waits(spec.loader))
        return spec


class _Waits:
    """A loader in the place of another one."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet. Without a path of its own even the import of a submodule is a use."""
        module.__dict__.pop("__path__", None)
        module.__class__ = _Unused

    def load(self, module: ModuleType) -> None:
        """In earnest."""
        spec = module.__spec__
        if spec is None:
            raise ImportError(f"{module.__name__}: lost its specification")
        spec.loader = module.__loader__ = self._loader
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        module.__class__ = ModuleType
        self._loader.exec_module(module)


class _Unused(ModuleType):
    """A module until anything of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        with _loading:
            waits = self.__dict__["__loader__"]
            if isinstance(waits, _Waits):
                waits.load(self)
        return getattr(self, name)


def begin() -> None:
    """From now on; what is loaded already stays as it is."""
    if Seldom not in sys.meta_path:
        sys.meta_path.insert(0, Seldom)
