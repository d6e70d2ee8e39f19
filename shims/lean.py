"""Keeps out of the zygote what libraries import and a shim never uses.

Half of what ``import`` brings in is there for decorators, annotations and other ways to do the
same: dataclasses bring inspect, ast and tokenize, protobuf brings its pure Python twin, datetime
and pickle. All of it would be in the memory of each shim, and would keep apart what a shim does
touch. So while the zygote imports, small stand-ins take such modules' places. They are taken away
afterwards: whatever is imported later, in a fork, is the real thing, and a stand-in that is used
after all fetches it.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:  # this very module must not import it
    from typing import Any

_UNUSED = (
    "google.protobuf.internal.python_message",
    "google.protobuf.text_format",
)
"""Imported by others, and never called where protobuf's C library does the work."""


class StandIns:
    """``with StandIns():`` around imports. A module that is there already stays."""

    def __enter__(self) -> None:
        self._modules = {
            module.__name__: module for module in _all() if module.__name__ not in sys.modules
        }
        sys.modules.update(self._modules)

    def __exit__(self, *_: object) -> None:
        for name, module in self._modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
            parent, _dot, child = name.rpartition(".")
            holder = sys.modules.get(parent)
            if holder is not None and vars(holder).get(child) is module:
                delattr(holder, child)


def _all() -> Iterator[ModuleType]:
    typing = _Typing("typing")
    typing.__dict__.update(TYPE_CHECKING=False, NamedTuple=_NamedTuple, TypeVar=_anything)
    yield typing
    dataclasses = ModuleType("dataclasses")
    dataclasses.__dict__.update(dataclass=_dataclass)
    yield dataclasses
    pathlib = ModuleType("pathlib")
    for name in ("Path", "PurePosixPath"):
        pathlib.__dict__[name] = _later("pathlib", name)
    yield pathlib
    for name in ("socket", "threading"):
        yield _Later(name)
    for name in _UNUSED:
        yield ModuleType(name)
    known = ModuleType("google.protobuf.internal.well_known_types")
    known.__dict__.update(WKTBASES={})
    yield known


class _Later(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self.__name__), name)


def _later(module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return getattr(_real(module), name)(*arguments)

    return call


def _real(name: str) -> ModuleType:
    from importlib import import_module

    held = sys.modules.get(name)
    if isinstance(held, _Later) or (held is not None and held.__spec__ is None):
        del sys.modules[name]
    return import_module(name)


# For annotations ----------------------------------------------------------------------------


class _Anything:
    """What annotations, type variables and bases of classes are at run time."""

    def __class_getitem__(cls, _: object) -> type:
        return cls


def _anything(*_: object, **__: object) -> type[_Anything]:
    return _Anything


class _Typing(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("cast", "overload", "final"):
            return lambda *arguments: arguments[-1]
        return _Anything


class _NamedTuples(type):
    """Makes ``class A(NamedTuple)`` a tuple with names."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(mcs, name, bases, body)
        fields = list(body.get("__annotations__", ()))
        defaults = [body.pop(field) for field in fields if field in body]
        base = namedtuple(name, fields, defaults=defaults)  # type: ignore[misc]
        body["__slots__"] = ()
        return type(name, (base,), body)


class _NamedTuple(metaclass=_NamedTuples):
    pass


def _dataclass(kind: type | None = None, **_: bool) -> Any:
    """A class whose instances are made of its annotated fields; that is all that shims use."""
    if kind is None:
        return _dataclass
    fields = list(vars(kind).get("__annotations__", ()))
    signature = "".join(
        f", {field}=_class.{field}" if field in vars(kind) else f", {field}" for field in fields
    )
    body = "".join(f"\n    self.{field} = {field}" for field in fields) or "\n    pass"
    made: dict[str, Any] = {"_class": kind}
    exec(f"def __init__(self{signature}):{body}", made)  # noqa: S102 - our own names only
    kind.__init__ = made["__init__"]  # type: ignore[misc]
    return kind
