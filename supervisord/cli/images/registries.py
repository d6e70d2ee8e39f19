"""``sctl images pull`` and ``push``: the daemon does the work, the CLI knows the user."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc

from ..arguments import Noun, quiet_flag, snapshotter_flag
from ..connection import Connection, connect
from ..errors import CliError
from ..output import show
from ..values import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from protos.containerd.types.transfer.transfer_pb2 import Progress
    from protos.containerd.types.types_pb2 import Platform as WirePlatform

    from .ticker import Ticker

_PULL = """\
IMAGE is a whole reference, or docker's short form: alpine is docker.io/library/alpine:latest.
SCTL_REGISTRY names another registry for short forms. Without --user, docker's configuration of
this user is asked for credentials (DOCKER_CONFIG, ~/.docker/config.json and its helpers)."""


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("pull", pull, "pull an image from a registry and unpack it", note=_PULL)
    verb.add_argument("image", metavar="IMAGE")
    registry_flags(verb)
    verb.add_argument("--platform", action="append", default=[], metavar="OS/ARCH",
        help="pull for this platform (default: this machine's)")  # fmt: skip
    verb.add_argument("--all-platforms", action="store_true", help="pull for all platforms")
    verb.add_argument("--no-unpack", action="store_true", help="only store the content")
    quiet_flag(verb, "name")
    snapshotter_flag(verb)

    verb = noun.verb(
        "push", push, "push an image to a registry",
        note="REF is where to push to; without it, the image's own name says so.",
    )  # fmt: skip
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("reference", nargs="?", default="", metavar="REF")
    registry_flags(verb)
    verb.add_argument("--platform", action="append", default=[], metavar="OS/ARCH",
        help="of an index, push what is for this platform (default: all of it)")  # fmt: skip
    quiet_flag(verb, "reference")


def registry_flags(verb: argparse.ArgumentParser) -> None:
    """How a registry is asked."""
    verb.add_argument("--plain-http", action="store_true", help="without TLS")
    verb.add_argument("--hosts-dir", default="", metavar="DIR",
        help="folders of registries with hosts.toml (default: the daemon's)")  # fmt: skip
    verb.add_argument("--user", "-u", default="", metavar="NAME[:SECRET]",
        help="credentials; the secret is asked for, or taken from SCTL_PASSWORD")  # fmt: skip


def pull(args: argparse.Namespace) -> None:
    """Pulls an image, and prints its name and digest."""
    from protos.containerd.services.images.v1.images_pb2 import GetImageRequest
    from protos.containerd.types.transfer import transfer_pb2 as types

    from . import media, references

    name = references.normalize(args.image, default=os.environ.get("SCTL_REGISTRY", ""))
    require(not (args.platform and args.all_platforms), "--platform excludes --all-platforms")
    platforms = [media.parse_platform(text) for text in args.platform] or [media.here()]
    with connect(args) as daemon, ExitStack() as stack:
        unpacks = []
        if not args.no_unpack:
            snapshotter = daemon.snapshotter(args.snapshotter)
            unpacks = [
                types.UnpackConfiguration(platform=wire_platform(one), snapshotter=snapshotter)
                for one in ([media.here()] if args.all_platforms else platforms)
            ]
        source = types.OCIRegistry(reference=name, resolver=resolver(args, daemon, stack))
        store = types.ImageStore(
            name=name,
            platforms=[] if args.all_platforms else [wire_platform(one) for one in platforms],
            unpacks=unpacks,
        )
        _transfer(daemon, source, store, quiet=args.quiet)
        target = daemon.images.Get(GetImageRequest(name=name)).image.target
    show(name if args.quiet else f"{name} {target.digest}")


def push(args: argparse.Namespace) -> None:
    """Pushes an image, and prints where it is and its digest."""
    from protos.containerd.types.transfer import transfer_pb2 as types

    from . import references
    from .records import get_image

    default = os.environ.get("SCTL_REGISTRY", "")
    reference = references.normalize(args.reference or args.image, default=default)
    platforms = [wire_platform(one) for one in _platforms(args.platform)]
    with connect(args) as daemon, ExitStack() as stack:
        image = get_image(daemon, args.image)
        registry = types.OCIRegistry(reference=reference, resolver=resolver(args, daemon, stack))
        store = types.ImageStore(name=image.name, platforms=platforms)
        _transfer(daemon, store, registry, quiet=args.quiet)
    show(reference if args.quiet else f"{reference} {image.target.digest}")


def _platforms(texts: Sequence[str]) -> list[Any]:
    if not texts:
        return []
    from . import media

    return [media.parse_platform(text) for text in texts]


def _transfer(daemon: Connection, source: Message, destination: Message, *, quiet: bool) -> None:
    from .ticker import Ticker

    pushing = destination.DESCRIPTOR.name == "OCIRegistry"
    with Ticker(quiet=quiet, pushing=pushing) as ticker:
        transfer(daemon, source, destination, ticker)


def transfer(
    daemon: Connection,
    source: Message,
    destination: Message,
    ticker: Ticker,
    told: Callable[[Progress], None] | None = None,
) -> None:
    """Has the daemon move something; the ticker shows, and ``told`` hears, what it says of it.
    Raises grpc.RpcError."""
    from google.protobuf.any_pb2 import Any as Packed

    from protos.containerd.services.transfer.v1 import transfer_pb2 as wire
    from protos.containerd.services.transfer.v1.transfer_pb2_grpc import TransferStub
    from protos.containerd.types.transfer.transfer_pb2 import Progress

    from .streams import packed, stream

    def each(value: Packed) -> None:
        progress = Progress.FromString(value.value)
        ticker.told(progress)
        if told is not None:
            told(progress)

    with stream(daemon, "progress", each, is_told=True) as id:
        options = wire.TransferOptions(progress_stream=id)
        call: Any = TransferStub(daemon.channel).Transfer.future(
            wire.TransferRequest(
                source=packed(source), destination=packed(destination), options=options
            )
        )
        try:
            call.result()
        except KeyboardInterrupt:
            call.cancel()  # the daemon keeps what came, for the next time
            raise
        except grpc.FutureCancelledError:
            raise CliError("the transfer was cancelled") from None


def resolver(args: argparse.Namespace, daemon: Connection, stack: ExitStack) -> Any:
    """The same for the daemon, and a stream on which it asks for credentials."""
    from protos.containerd.types.transfer.transfer_pb2 import RegistryResolver

    from . import login
    from .streams import stream

    ask = login.given(args.user) if args.user else login.configured()
    id = stack.enter_context(stream(daemon, "auth", login.answering(ask)))
    return RegistryResolver(
        auth_stream=id,
        host_dir=os.path.abspath(args.hosts_dir) if args.hosts_dir else "",  # noqa: PTH100
        default_scheme="http" if args.plain_http else "",
    )


def wire_platform(platform: Any) -> WirePlatform:
    """As messages have it."""
    from protos.containerd.types.types_pb2 import Platform

    return Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)
