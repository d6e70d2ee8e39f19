"""``sctl images``: list, check, inspect, names, archives, mounts; it declares registries, too."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import grpc

from ..arguments import Noun, format_flag, quiet_flag, snapshotter_flag
from ..connection import Connection, connect
from ..errors import CliError, Failures, is_code, rpc_text
from ..output import human_bytes, labels_line, listing, moment, show, warn
from ..values import label_change, labels_of, require


def register(noun: Noun) -> None:
    """Declares the verbs."""
    from ..images import branches, inspecting, registries, remote

    registries.register(noun)
    remote.register(noun)
    inspecting.register(noun)
    _register_archives(noun)
    branches.register(noun)
    verb = noun.verb("ls", list_images, "list images", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as name~=busybox")
    quiet_flag(verb, "names")
    format_flag(verb)

    verb = noun.verb("check", check, "check that all content of images is here", note=_CHECK)
    verb.add_argument("filters", nargs="*", metavar="FILTER")
    quiet_flag(verb, "names of images that are complete and unpacked")
    snapshotter_flag(verb)
    format_flag(verb)

    verb = noun.verb("tag", tag, "give an image more names")
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.add_argument("--force", action="store_true", help="replace names that are taken")

    verb = noun.verb("label", label, "set and clear labels; an empty value clears one")
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("labels", nargs="*", type=label_change, metavar="KEY=VALUE")
    verb.add_argument("--replace-all", "-r", action="store_true", help="drop all other labels")

    verb = noun.verb("rm", remove, "remove image names", ["delete", "del", "remove"])
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb.add_argument(
        "--sync", action="store_true", help="also collect at once what nothing refers to any more"
    )
    _register_mounts(noun)


_CHECK = "An image is ready when its content is complete and its layers are unpacked."


def _register_archives(noun: Noun) -> None:
    verb = noun.verb(
        "import", import_, "import images from a tar archive",
        note="Takes OCI layouts and docker archives, also compressed with gzip, zstd, xz, bzip2.",
    )  # fmt: skip
    verb.add_argument("file", metavar="FILE", help="the archive; - for stdin")
    verb.add_argument("--base-name", default="", metavar="NAME",
        help="put bare tags behind this name, and take only images that belong to it")  # fmt: skip
    verb.add_argument("--index-name", default="", metavar="NAME", help="also name the whole index")
    verb.add_argument("--digests", action="store_true", help="also make names by digest")
    verb.add_argument("--skip-digest-for-named", action="store_true",
        help="with --digests: only for images that the archive does not name")  # fmt: skip
    _platform_flags(verb, "import")
    verb.add_argument("--no-unpack", action="store_true", help="only store the content")
    snapshotter_flag(verb)

    verb = noun.verb(
        "export", export, "export images to a tar archive",
        note="The archive is an OCI layout that 'docker load' understands too.",
    )  # fmt: skip
    verb.add_argument("file", metavar="FILE", help="the archive to write; - for stdout")
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb.add_argument("--skip-manifest-json", action="store_true", help="leave out docker's part")
    _platform_flags(verb, "export")


def _register_mounts(noun: Noun) -> None:
    verb = noun.verb("mount", mount, "mount an image's root filesystem")
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("target", metavar="FOLDER")
    verb.add_argument("--rw", action="store_true", help="let it be written to")
    verb.add_argument("--platform", metavar="OS/ARCH")
    snapshotter_flag(verb)

    verb = noun.verb("unmount", unmount, "unmount an image", ["umount"])
    verb.add_argument("target", metavar="FOLDER")
    verb.add_argument("--rm", action="store_true", help="also remove the snapshot")
    snapshotter_flag(verb)


def _platform_flags(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument("--platform", action="append", default=[], metavar="OS/ARCH",
        help=f"{what} for this platform (default: this machine's)")  # fmt: skip
    verb.add_argument("--all-platforms", action="store_true", help=f"{what} for all platforms")


def _platforms(args: argparse.Namespace) -> list[Any] | None:
    from ..images import media

    if args.all_platforms:
        return None
    return [media.parse_platform(text) for text in args.platform] or [media.here()]


def import_(args: argparse.Namespace) -> None:
    """Imports an archive and unpacks its images."""
    from ..images import carrying, importing, manifests, media
    from ..images.progress import Bars
    from ..images.unpack import unpack

    platforms = _platforms(args)
    options = importing.Options(
        base_name=args.base_name,
        index_name=args.index_name,
        digests=args.digests,
        skip_digest_for_named=args.skip_digest_for_named,
        platforms=platforms,
    )
    with ExitStack() as stack:
        source = stack.enter_context(_source(args.file))
        daemon = stack.enter_context(connect(args))
        if carrying.offered(daemon):
            into = "" if args.no_unpack else daemon.snapshotter(args.snapshotter)
            for name, digest in carrying.carry(daemon, source, options, into):
                show(f"{name} {digest}")
            return
        stack.enter_context(daemon.lease())
        bars = stack.enter_context(Bars())
        images = importing.import_archive(daemon, source, options, bars)
        snapshotter = "" if args.no_unpack else daemon.snapshotter(args.snapshotter)
        unpacked: set[str] = set()
        for _, target in images:
            if snapshotter and target.digest not in unpacked:
                unpacked.add(target.digest)
                for wanted in [media.here()] if platforms is None else platforms:
                    unpack(
                        daemon,
                        manifests.select(daemon, target, wanted),
                        snapshotter,
                        lambda done, total: bars.step("unpacking layers", done, total),
                    )
    for name, target in images:
        show(f"{name} {target.digest}")


def _source(path: str) -> BinaryIO:
    if path == "-":
        require(not sys.stdin.isatty(), "images import -: stdin is a terminal, not an archive")
        return cast(BinaryIO, open(0, "rb", closefd=False))
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def export(args: argparse.Namespace) -> None:
    """Writes images to an archive; a failed export leaves no file."""
    from ..images.exporting import export as write
    from ..images.progress import Bars

    with ExitStack() as stack:
        to_stdout = args.file == "-"
        require(not (to_stdout and sys.stdout.isatty()), "images export -: stdout is a terminal")
        daemon = stack.enter_context(connect(args))
        undo = stack.enter_context(ExitStack())
        target = stack.enter_context(
            open(1 if to_stdout else args.file, "wb", closefd=not to_stdout)
        )
        if not to_stdout:
            undo.callback(Path(args.file).unlink, missing_ok=True)
        write(
            daemon,
            args.images,
            target,
            platforms=_platforms(args),
            docker_manifest=not args.skip_manifest_json,
            bars=stack.enter_context(Bars()),
        )
        undo.pop_all()


def list_images(args: argparse.Namespace) -> None:
    """Prints the images that match, with their sizes and platforms."""
    from protos.containerd.services.images.v1.images_pb2 import ListImagesRequest

    with connect(args) as daemon:
        images = daemon.images.List(ListImagesRequest(filters=args.filters)).images
        if args.quiet:
            for image in images:
                show(image.name)
            return
        records = [_record(daemon, image) for image in images]
    if args.format == "table":
        for record in records:
            record["size"] = human_bytes(record["size"])
    columns = [
        ("REF", "name"),
        ("TYPE", "type"),
        ("DIGEST", "digest"),
        ("SIZE", "size"),
        ("PLATFORMS", "platforms"),
        ("LABELS", "labels"),
    ]
    listing(records, columns, format=args.format)


def _record(daemon: Connection, image: Any) -> dict[str, Any]:
    from ..images import manifests, media

    target = manifests.target_of(image)
    platforms, size = [], target.size
    try:
        for manifest in manifests.manifests(daemon, target):
            platform = manifests.platform_of(daemon, manifest)
            if platform is not None and str(platform) not in platforms:
                platforms.append(str(platform))
        if target.is_manifest or target.is_index:
            chosen = manifests.select(daemon, target, media.here())
            size += sum(item.size for item in (chosen.config, *chosen.layers))
            size += chosen.target.size if target.is_index else 0
    except (CliError, grpc.RpcError) as error:
        # One damaged or partial image must not hide the others.
        reason = rpc_text(error, daemon.address) if isinstance(error, grpc.RpcError) else error
        warn(f"{image.name}: {reason}")
    return {
        "name": image.name,
        "type": target.media_type,
        "digest": target.digest,
        "size": size,
        "platforms": sorted(platforms),
        "labels": dict(image.labels),
        "created_at": moment(image.created_at),
        "updated_at": moment(image.updated_at),
    }


def check(args: argparse.Namespace) -> None:
    """Prints how complete each image is."""
    from protos.containerd.services.images.v1.images_pb2 import ListImagesRequest

    with connect(args) as daemon:
        images = daemon.images.List(ListImagesRequest(filters=args.filters)).images
        snapshotter = daemon.snapshotter(args.snapshotter)
        records = [_checked(daemon, image, snapshotter) for image in images]
    if args.quiet:
        for record in records:
            if record["status"].startswith("complete") and record["unpacked"]:
                show(record["name"])
        return
    columns = [
        ("REF", "name"),
        ("TYPE", "type"),
        ("DIGEST", "digest"),
        ("STATUS", "status"),
        ("SIZE", "size"),
        ("UNPACKED", "unpacked"),
    ]
    listing(records, columns, format=args.format)


def _checked(daemon: Connection, image: Any, snapshotter: str) -> dict[str, Any]:
    from ..images import blobs, manifests, media
    from ..images.unpack import chain_of, is_unpacked

    target = manifests.target_of(image)
    record: dict[str, Any] = {
        "name": image.name,
        "type": target.media_type,
        "digest": target.digest,
        "status": "unavailable",
        "size": "-",
        "unpacked": False,
    }
    try:
        manifest = manifests.select(daemon, target, media.here())
        needed = [manifest.config, *manifest.layers]
        present = [item for item in needed if blobs.exists(daemon, item.digest)]
        word = "complete" if len(present) == len(needed) else "incomplete"
        sizes = [human_bytes(sum(item.size for item in some)) for some in (present, needed)]
        record["status"] = f"{word} ({len(present)}/{len(needed)})"
        record["size"] = "/".join(sizes)
        record["unpacked"] = is_unpacked(daemon, chain_of(daemon, manifest), snapshotter)
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            record["status"] = f"error: {rpc_text(error, daemon.address)}"
    except CliError as error:
        record["status"] = f"error: {error}"
    return record


def tag(args: argparse.Namespace) -> None:
    """Makes more names for an image's target."""
    from protos.containerd.services.images.v1 import images_pb2 as wire

    from ..images.manifests import get_image

    with connect(args) as daemon:
        image = get_image(daemon, args.image)
        for name in args.names:
            image.name = name
            try:
                daemon.images.Create(wire.CreateImageRequest(image=image))
            except grpc.RpcError as error:
                if not (args.force and is_code(error, "ALREADY_EXISTS")):
                    raise
                daemon.images.Update(wire.UpdateImageRequest(image=image))
            show(name)


def label(args: argparse.Namespace) -> None:
    """Changes labels and prints all."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from protos.containerd.services.images.v1 import images_pb2 as wire

    changes = labels_of(args.labels)
    paths = ["labels"] if args.replace_all else [f"labels.{key}" for key in changes]
    require(paths, "images label: no labels were given")
    request = wire.UpdateImageRequest(
        image=wire.Image(name=args.image, labels=changes), update_mask=FieldMask(paths=paths)
    )
    with connect(args) as daemon:
        show(labels_line(daemon.images.Update(request).image.labels))


def remove(args: argparse.Namespace) -> None:
    """Removes names; one that is not there fails the command but not the others."""
    from protos.containerd.services.images.v1 import images_pb2 as wire

    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for name in args.images:
            sync = args.sync and name == args.images[-1]
            with failures.of(name):
                daemon.images.Delete(wire.DeleteImageRequest(name=name, sync=sync))
                show(name)
    failures.check()


def mount(args: argparse.Namespace) -> None:
    """Mounts an image at a folder, whose path names the snapshot."""
    from .. import activating
    from ..images import manifests, media
    from ..images.unpack import unpack
    from ..mounting import mount_all

    target = str(Path(args.target).absolute())
    require(Path(target).is_dir(), f"{args.target}: not a folder")
    wanted = media.parse_platform(args.platform) if args.platform else media.here()
    with connect(args) as daemon, ExitStack() as undo:
        image = manifests.get_image(daemon, args.image)
        manifest = manifests.select(daemon, manifests.target_of(image), wanted)
        snapshotter = daemon.snapshotter(args.snapshotter)
        top = unpack(daemon, manifest, snapshotter)
        mounts = _snapshot(daemon, target, top, snapshotter, undo, writable=args.rw)
        if activating.is_wanted(mounts):
            labels = {f"containerd.io/gc.bref.snapshot.{snapshotter}": target}
            undo.callback(activating.deactivate, daemon, target)
            mounts = activating.activate(daemon, target, mounts, labels)
        mount_all(mounts, target)
        undo.pop_all()
    show(target)


def _snapshot(
    daemon: Connection, key: str, parent: str, snapshotter: str, undo: ExitStack, *, writable: bool
) -> Any:
    """A snapshot that garbage collection leaves alone until it is removed."""
    from datetime import UTC, datetime

    from protos.containerd.services.snapshots.v1 import snapshots_pb2 as wire

    labels = {"containerd.io/gc.root": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    if writable:
        answer: Any = daemon.snapshots.Prepare(
            wire.PrepareSnapshotRequest(
                snapshotter=snapshotter, key=key, parent=parent, labels=labels
            )
        )
    else:
        answer = daemon.snapshots.View(
            wire.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels)
        )
    undo.callback(_remove_snapshot, daemon, key, snapshotter)
    return answer.mounts


def _remove_snapshot(daemon: Connection, key: str, snapshotter: str) -> None:
    from protos.containerd.services.snapshots.v1 import snapshots_pb2 as wire

    try:
        daemon.snapshots.Remove(wire.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise


def unmount(args: argparse.Namespace) -> None:
    """Unmounts a folder, and with ``--rm`` removes its snapshot."""
    from .. import activating
    from ..mounting import unmount_all

    target = str(Path(args.target).absolute())
    with connect(args) as daemon:
        unmount_all(target)
        activating.deactivate(daemon, target)
        if args.rm:
            _remove_snapshot(daemon, target, daemon.snapshotter(args.snapshotter))
    show(target)
