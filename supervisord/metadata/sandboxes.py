"""Sandboxes in the metadata database; implements contracts.sandboxes.SandboxStore.

Records only: instances are the controllers' business. A record is a root of garbage collection,
which keeps what its labels refer to, as a container's is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.sandboxes import Sandbox

from . import labels as label_rules
from . import references
from . import sandbox_records as records
from .commits import Commits
from .record_table import Kind, RecordTable, masked

_FIELDS = {"spec": "spec", "runtime": "runtime"}
_MUTABLE = ("labels", "extensions", *_FIELDS)


def edges(sandbox: Sandbox) -> list[references.Edge]:
    """What keeps what because of the sandbox. Back references count for nothing, as in containerd:
    it is always live."""
    node = references.Node(references.SANDBOXES, sandbox.id)
    return [edge for edge in references.label_edges(node, sandbox.labels) if edge.source == node]


_KIND = Kind(references.SANDBOXES, "sandbox", records.encode, records.decode, records.fields, edges)


class Sandboxes:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        table = self._table = RecordTable(commits, _KIND)
        self.get, self.record, self.records = table.get, table.record, table.records
        self.delete = table.remove

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Raises InvalidArgument, AlreadyExists."""
        now = time.time_ns()
        made = _checked(replace(sandbox, created_at=now, updated_at=now))
        await self._table.insert(namespace, made)
        return made

    async def update(self, namespace: str, sandbox: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
        """Changes the mutable fields. Raises NotFound, InvalidArgument."""

        def change(current: Sandbox) -> Sandbox:
            changed = _changed(current, sandbox, fieldpaths)
            return _checked(replace(changed, updated_at=time.time_ns()))

        return (await self._table.change(namespace, sandbox.id, change))[0]


def _checked(sandbox: Sandbox) -> Sandbox:
    """The sandbox as it is kept. Raises InvalidArgument."""
    check_identifier(sandbox.id, "sandbox.sandbox_id")
    if "" in sandbox.extensions:
        raise InvalidArgument("sandbox.extensions: keys must not be zero-length")
    return replace(sandbox, labels=label_rules.checked(sandbox.labels, "sandbox.labels"))


def _changed(current: Sandbox, wanted: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
    """``current`` with the fields of ``wanted`` that the paths name. Raises InvalidArgument."""
    if not fieldpaths:
        fieldpaths = _MUTABLE
        if current.runtime.name != wanted.runtime.name:
            raise InvalidArgument("sandbox.Runtime.Name field is immutable: invalid argument")
    return masked(
        current,
        wanted,
        fieldpaths,
        _FIELDS,
        lambda path: InvalidArgument(
            f'cannot update "{path}" field on sandbox "{current.id}": invalid argument'
        ),
    )
