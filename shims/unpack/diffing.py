"""The worker's other operation: computes the layer between two sets of mounts.

Arguments: ``lower`` and ``upper`` (mounts; lower may be empty), ``mountpoints`` (two empty
directories), ``compression`` (gzip, zstd, none), ``epoch`` (SOURCE_DATE_EPOCH in seconds, or null).
Both are mounted in a mount namespace of our own, the upper one read-only. Where an overlay's own
directory holds exactly what distinguishes the two, only that is walked.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

from supervisord.contracts.errors import Cancelled, InvalidArgument
from supervisord.contracts.snapshots import Mount
from supervisord.linux.mount import mount_all
from supervisord.linux.mount_options import escape_colon

from . import owners
from .changes import Walk
from .layer import LayerWriter
from .outflow import Outflow
from .target import kept, open_folder, overlay_layers, parse_mounts, unshare_mounts


def diff(arguments: Mapping[str, object], output: int) -> Mapping[str, object]:
    """Writes the layer to ``output``; answers digest and size of the uncompressed tar."""
    lower = parse_mounts(arguments.get("lower")) if arguments.get("lower") else []
    upper = parse_mounts(arguments.get("upper"))
    places = arguments.get("mountpoints")
    if not isinstance(places, list) or len(places) != 2:
        raise InvalidArgument("mountpoints: must be two directories")
    epoch = arguments.get("epoch")
    unshare_mounts()
    lower, upper = owners.as_stored(lower), owners.as_stored(upper)
    candidates = distinguishing(lower, upper)
    own = open_folder(candidates) if candidates else -1
    mount_all([kept(mount) for mount in lower], str(places[0]))
    mount_all([kept(_read_only(mount)) for mount in upper], str(places[1]))
    _raise_file_limit()
    below = open_folder(str(places[0])) if lower else -1
    walk = Walk(below, open_folder(str(places[1])), own)
    outflow = Outflow(output, str(arguments.get("compression", "none")))
    try:
        LayerWriter(walk, outflow.write, epoch if isinstance(epoch, int) else None).run()
        digest = outflow.finish()
    except BrokenPipeError:
        raise Cancelled("diff: nobody waits for the layer") from None
    return {"digest": digest, "size": outflow.size}


def distinguishing(lower: Sequence[Mount], upper: Sequence[Mount]) -> str:
    """The directory with all that distinguishes upper from lower, "" where there is none: the
    first of upper's layers, if the rest of them are exactly lower's."""
    first, *rest = _layers(upper) or [""]
    return first if lower and rest == _layers(lower) else ""


def _layers(mounts: Sequence[Mount]) -> list[str]:
    if len(mounts) != 1 or mounts[0].target:
        return []
    if mounts[0].type == "bind":
        return [mounts[0].source]
    if mounts[0].type != "overlay":
        return []
    upper, lowers = overlay_layers(mounts[0].options)
    return [upper, *lowers] if upper else lowers


def _read_only(mount: Mount) -> Mount:
    """As seen by a reader: an overlay without its upper directory, which becomes a lower one, so
    that a container that has it mounted is not disturbed."""
    if mount.type != "overlay":
        options = tuple(option for option in mount.options if option != "rw")
        return Mount(mount.type, mount.source, (*options, "ro"), mount.target)
    upper, _ = overlay_layers(mount.options)
    options = ()
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "lowerdir" and upper:
            options = (*options, f"lowerdir={escape_colon(upper)}:{value}")
        elif key not in ("upperdir", "workdir"):
            options = (*options, option)
    return Mount(mount.type, mount.source, options, mount.target)


def _raise_file_limit() -> None:
    """A walk has three descriptors open for every folder on its way down."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
