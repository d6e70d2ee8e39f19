"""The wire as text: every service, message, field and enum value of our descriptors, a line each.

The checked-in ``wire.txt`` beside this file is that text as peers rely on it. After a change
that was meant, write it anew: ``./dev run python -m tests.unit.protos.wire``.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    ServiceDescriptor,
)

from protos import generate

GOLDEN = Path(__file__).with_name("wire.txt")
_SCALARS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def modules() -> list[str]:
    """The names of all generated message modules."""
    return [
        ".".join(("protos", *path.relative_to(generate.ROOT).with_suffix("").parts)) + "_pb2"
        for path in generate.sources()
    ]


def lines() -> list[str]:
    """All facts of all files, in a stable order."""
    found: list[str] = []
    for name in modules():
        file: FileDescriptor = importlib.import_module(name).DESCRIPTOR
        found += [fact for s in file.services_by_name.values() for fact in _service(s)]
        found += [fact for m in file.message_types_by_name.values() for fact in _message(m)]
        found += [fact for e in file.enum_types_by_name.values() for fact in _enum(e)]
    return sorted(found)


def _service(service: ServiceDescriptor) -> list[str]:
    return [
        f"{service.full_name}.{method.name}("
        f"{'stream ' * method.client_streaming}{method.input_type.full_name}) -> "
        f"{'stream ' * method.server_streaming}{method.output_type.full_name}"
        for method in service.methods
    ] or [f"{service.full_name}()"]


def _message(message: Descriptor) -> list[str]:
    if message.GetOptions().map_entry:
        return []
    found = [f"{message.full_name} {{}}"] if not message.fields else []
    found += [f"{message.full_name}.{f.name} = {f.number} {_kind(f)}" for f in message.fields]
    for nested in message.nested_types:
        found += _message(nested)
    for enum in message.enum_types:
        found += _enum(enum)
    return found


def _enum(enum: EnumDescriptor) -> list[str]:
    return [f"{enum.full_name}#{value.name} = {value.number}" for value in enum.values]


def _kind(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{_type(key)}, {_type(value)}>"
    oneof = field.containing_oneof
    synthetic = oneof is not None and oneof.name == f"_{field.name}"
    kind = f"{'repeated ' * field.is_repeated}{'optional ' * synthetic}{_type(field)}"
    return kind if oneof is None or synthetic else f"{kind} in {oneof.name}"


def _type(field: FieldDescriptor) -> str:
    composite = field.message_type or field.enum_type
    return composite.full_name if composite is not None else _SCALARS[field.type]


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(lines()) + "\n")
