"""Sandbox records between the wire and the contract; used by the store and the controller."""

from __future__ import annotations

from protos.containerd.types import types_pb2
from supervisord.contracts.containers import Runtime
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.typed import from_any

from .wire import nanoseconds, typed_map


def from_sandbox(sandbox: types_pb2.Sandbox) -> Sandbox:
    """The record that a client sent."""
    return Sandbox(
        id=sandbox.sandbox_id,
        runtime=Runtime(sandbox.runtime.name, from_any(sandbox.runtime.options)),
        spec=from_any(sandbox.spec),
        labels=dict(sandbox.labels),
        extensions=typed_map(sandbox.extensions),
        sandboxer=sandbox.sandboxer,
        created_at=nanoseconds(sandbox.created_at),
        updated_at=nanoseconds(sandbox.updated_at),
    )
