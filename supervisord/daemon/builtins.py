"""The built-in plugins, in the order in which they are offered. Nothing registers itself.

Types and ids are containerd's for what both have, so that ``ctr plugins ls`` and scripts that look
for a plugin find it. One differs: metadata is ``sqlite``, because ``bolt`` names a file format
that other tools open.
"""

from __future__ import annotations

from . import parts_edge, parts_engine, parts_images, parts_mounts, parts_sandbox

BUILTINS = (
    *parts_engine.REGISTRATIONS,
    *parts_mounts.REGISTRATIONS,
    *parts_sandbox.REGISTRATIONS,
    *parts_images.REGISTRATIONS,
    *parts_edge.REGISTRATIONS,
)
