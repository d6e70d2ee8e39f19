"""The scope of a request: its namespace, and the lease that what it creates belongs to.

It travels on the wire in request metadata (``containerd-namespace``, ``containerd-lease``) and
inside the daemon as an explicit first argument, never hidden in a context variable.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """A checked namespace, and a lease id ("" where the caller holds none)."""

    namespace: str
    lease: str = ""
