"""``sctl snapshots``: everything that a snapshotter offers, and unpacking images into it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..arguments import Noun, format_flag, quiet_flag, snapshotter_flag
from ..connection import Connection, connect
from ..errors import Failures
from ..output import human_bytes, labels_line, listing, moment, show, show_json
from ..values import label_change, labels_of, pair, require

if TYPE_CHECKING:
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import Info
    from protos.containerd.types.types_pb2 import Mount

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def register(noun: Noun) -> None:
    """Declares the verbs."""
    snapshotter_flag(noun.parser)
    verb = noun.verb("ls", list_snapshots, "list snapshots", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as kind==active")
    quiet_flag(verb, "keys")
    format_flag(verb)

    for name, run, summary in (
        ("prepare", prepare, "make a writable snapshot over a committed one"),
        ("view", view, "make a read-only snapshot of a committed one"),
    ):
        verb = noun.verb(name, run, summary)
        verb.add_argument("key", metavar="KEY")
        verb.add_argument("parent", nargs="?", default="", metavar="PARENT")
        verb.add_argument("--target", "-t", metavar="FOLDER", help="print how to mount it there")
        verb.add_argument("--mounts", action="store_true", help="print its mounts as JSON")
        verb.add_argument("--label", action="append", default=[], type=pair, metavar="KEY=VALUE")

    verb = noun.verb("mounts", mounts, "print how to mount a snapshot", ["m", "mount"])
    verb.add_argument("target", metavar="FOLDER")
    verb.add_argument("key", metavar="KEY")

    verb = noun.verb("commit", commit, "turn an active snapshot into a committed one")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("key", metavar="KEY")

    verb = noun.verb(
        "diff", diff, "write the layer between two snapshots to stdout",
        note="Without UPPER the layer is between the parent of LOWER and LOWER itself.",
    )  # fmt: skip
    verb.add_argument("lower", metavar="LOWER")
    verb.add_argument("upper", nargs="?", default="", metavar="UPPER")
    verb.add_argument("--media-type", default=LAYER, metavar="TYPE")
    verb.add_argument("--ref", default="", metavar="REF", help="the ingest's name")
    verb.add_argument("--keep", action="store_true", help="print the digest and keep the blob")
    verb.add_argument("--label", action="append", default=[], type=pair, metavar="KEY=VALUE")

    verb = noun.verb("usage", usage, "show what snapshots take on disk, without their parents")
    verb.add_argument("keys", nargs="*", metavar="KEY")
    verb.add_argument("-b", dest="plain", action="store_true", help="sizes in bytes")
    format_flag(verb)
    _register_rest(noun)


def _register_rest(noun: Noun) -> None:
    verb = noun.verb("info", info, "show everything about a snapshot as JSON")
    verb.add_argument("key", metavar="KEY")

    verb = noun.verb("tree", tree, "show snapshots below their parents")

    verb = noun.verb("label", label, "set and clear labels; an empty value clears one")
    verb.add_argument("key", metavar="KEY")
    verb.add_argument("labels", nargs="+", type=label_change, metavar="KEY=VALUE")

    verb = noun.verb("unpack", unpack, "unpack the layers of an image into snapshots")
    verb.add_argument("image", metavar="IMAGE", help="a name, or the digest of a manifest")
    verb.add_argument("--platform", metavar="OS/ARCH")

    verb = noun.verb("rm", remove, "remove snapshots", ["delete", "del", "remove"])
    verb.add_argument("keys", nargs="+", metavar="KEY")


def _all(daemon: Connection, args: argparse.Namespace, filters: list[str]) -> list[Info]:
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import ListSnapshotsRequest

    request = ListSnapshotsRequest(
        snapshotter=daemon.snapshotter(args.snapshotter), filters=filters
    )
    return [item for answer in daemon.snapshots.List(request) for item in answer.info]


def _record(item: Info) -> dict[str, Any]:
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import Kind

    return {
        "key": item.name,
        "parent": item.parent,
        "kind": Kind.Name(item.kind).capitalize(),
        "created_at": moment(item.created_at),
        "updated_at": moment(item.updated_at),
        "labels": dict(item.labels),
    }


def list_snapshots(args: argparse.Namespace) -> None:
    """Prints the snapshots that match."""
    with connect(args) as daemon:
        records = sorted(map(_record, _all(daemon, args, args.filters)), key=lambda r: r["key"])
    if args.quiet:
        for record in records:
            show(record["key"])
        return
    columns = [("KEY", "key"), ("PARENT", "parent"), ("KIND", "kind")]
    listing(records, columns, format=args.format)


def prepare(args: argparse.Namespace) -> None:
    """Makes an active snapshot."""
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import PrepareSnapshotRequest

    with connect(args) as daemon:
        request = PrepareSnapshotRequest(
            snapshotter=daemon.snapshotter(args.snapshotter),
            key=args.key,
            parent=args.parent,
            labels=labels_of(args.label),
        )
        _show_mounts(daemon.snapshots.Prepare(request).mounts, args)


def view(args: argparse.Namespace) -> None:
    """Makes a view."""
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import ViewSnapshotRequest

    with connect(args) as daemon:
        request = ViewSnapshotRequest(
            snapshotter=daemon.snapshotter(args.snapshotter),
            key=args.key,
            parent=args.parent,
            labels=labels_of(args.label),
        )
        _show_mounts(daemon.snapshots.View(request).mounts, args)


def _show_mounts(found: Any, args: argparse.Namespace) -> None:
    from ..mounting import command_line

    if args.target:
        for mount in found:
            show(command_line(mount, args.target))
    if args.mounts:
        show_json([_mount_record(mount) for mount in found])


def _mount_record(mount: Mount) -> dict[str, Any]:
    return {
        "type": mount.type,
        "source": mount.source,
        "target": mount.target,
        "options": list(mount.options),
    }


def _mounts(daemon: Connection, args: argparse.Namespace, key: str) -> Any:
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import MountsRequest

    request = MountsRequest(snapshotter=daemon.snapshotter(args.snapshotter), key=key)
    return daemon.snapshots.Mounts(request).mounts


def mounts(args: argparse.Namespace) -> None:
    """Prints mount(8) commands."""
    from ..mounting import command_line

    with connect(args) as daemon:
        for mount in _mounts(daemon, args, args.key):
            show(command_line(mount, args.target))


def commit(args: argparse.Namespace) -> None:
    """Commits an active snapshot, and keeps it from garbage collection."""
    from datetime import UTC, datetime

    from protos.containerd.services.snapshots.v1.snapshots_pb2 import CommitSnapshotRequest

    with connect(args) as daemon:
        daemon.snapshots.Commit(
            CommitSnapshotRequest(
                snapshotter=daemon.snapshotter(args.snapshotter),
                name=args.name,
                key=args.key,
                labels={"containerd.io/gc.root": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
            )
        )


def diff(args: argparse.Namespace) -> None:
    """Computes a layer and writes it out, or keeps it and prints its digest."""
    from ..images import blobs
    from ..snapdiff import layer_between

    require(args.keep or not sys.stdout.isatty(), "the layer is binary: redirect stdout, or --keep")
    labels = labels_of(args.label)
    if args.keep:
        labels.setdefault("containerd.io/gc.root", "true")
    with connect(args) as daemon, daemon.lease():
        made = layer_between(
            daemon,
            daemon.snapshotter(args.snapshotter),
            args.lower,
            args.upper,
            media_type=args.media_type,
            ref=args.ref,
            labels=labels,
        )
        if args.keep:
            show(made.digest)
            return
        for chunk in blobs.chunks(daemon, made.digest):
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def usage(args: argparse.Namespace) -> None:
    """Prints disk usage of the named snapshots, or of all."""
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import UsageRequest

    with connect(args) as daemon:
        snapshotter = daemon.snapshotter(args.snapshotter)
        keys = args.keys or sorted(item.name for item in _all(daemon, args, []))
        records: list[dict[str, Any]] = []
        for key in keys:
            used = daemon.snapshots.Usage(UsageRequest(snapshotter=snapshotter, key=key))
            size: int | str = used.size
            if args.format == "table" and not args.plain:
                size = human_bytes(used.size)
            records.append({"key": key, "size": size, "inodes": used.inodes})
    columns = [("KEY", "key"), ("SIZE", "size"), ("INODES", "inodes")]
    listing(records, columns, format=args.format)


def info(args: argparse.Namespace) -> None:
    """Prints one snapshot."""
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import StatSnapshotRequest

    with connect(args) as daemon:
        request = StatSnapshotRequest(
            snapshotter=daemon.snapshotter(args.snapshotter), key=args.key
        )
        found = _record(daemon.snapshots.Stat(request).info)
    # In the shape that ctr prints.
    show_json(
        {
            "Kind": found["kind"],
            "Name": found["key"],
            "Parent": found["parent"],
            "Labels": found["labels"],
            "Created": found["created_at"],
            "Updated": found["updated_at"],
        }
    )


def tree(args: argparse.Namespace) -> None:
    """Prints all snapshots as trees."""
    with connect(args) as daemon:
        found = _all(daemon, args, [])
    below: dict[str, list[str]] = {}
    for item in sorted(found, key=lambda item: item.name):
        below.setdefault(item.parent, []).append(item.name)
    # A deep chain of layers must not meet Python's recursion limit.
    todo = [(name, 0) for name in reversed(below.get("", []))]
    while todo:
        name, depth = todo.pop()
        show("  " * depth + ("\\_ " if depth else "") + name)
        todo += [(child, depth + 1) for child in reversed(below.get(name, []))]


def label(args: argparse.Namespace) -> None:
    """Changes labels and prints all."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from protos.containerd.services.snapshots.v1 import snapshots_pb2 as wire

    changes = labels_of(args.labels)
    with connect(args) as daemon:
        request = wire.UpdateSnapshotRequest(
            snapshotter=daemon.snapshotter(args.snapshotter),
            info=wire.Info(name=args.key, labels=changes),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in changes]),
        )
        show(labels_line(daemon.snapshots.Update(request).info.labels))


def unpack(args: argparse.Namespace) -> None:
    """Unpacks an image and prints the name of its topmost snapshot."""
    from ..images import blobs, manifests, media
    from ..images.progress import Bars
    from ..images.unpack import unpack as apply

    wanted = media.parse_platform(args.platform) if args.platform else media.here()
    with connect(args) as daemon, Bars() as bars:
        if args.image.startswith("sha256:"):
            kind = str(blobs.read_json(daemon, args.image).get("mediaType") or media.MANIFEST)
            target = media.Descriptor(kind, args.image, 0)
        else:
            target = manifests.target_of(manifests.get_image(daemon, args.image))
        top = apply(
            daemon,
            manifests.select(daemon, target, wanted),
            daemon.snapshotter(args.snapshotter),
            lambda done, total: bars.step("unpacking layers", done, total),
        )
    show(top)


def remove(args: argparse.Namespace) -> None:
    """Removes snapshots; goes on after a failure."""
    from protos.containerd.services.snapshots.v1.snapshots_pb2 import RemoveSnapshotRequest

    with connect(args) as daemon:
        snapshotter = daemon.snapshotter(args.snapshotter)
        failures = Failures(daemon.address)
        for key in args.keys:
            with failures.of(key):
                daemon.snapshots.Remove(RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
                show(key)
    failures.check()
