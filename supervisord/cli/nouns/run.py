"""``sctl run``: a container from an image to its exit code, in one command."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from ..arguments import Noun, snapshotter_flag
from ..spec import flags
from ..stdio.flags import add_flags, checkpoint_flag
from ..values import require


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(
        run,
        "Creates a container from an image, runs it, and exits with its exit code.\n\n"
        "  sctl run --rm -t docker.io/library/busybox:latest hello sh\n"
        "  sctl run -d --log-uri file:///var/log/web.log IMAGE web",
    )
    parser.usage = "sctl run [FLAGS] IMAGE ID [COMMAND] [ARG...]"
    add_arguments(parser)
    parser.add_argument(
        "--rm", action="store_true", help="remove the container and its snapshot at the end"
    )
    checkpoint_flag(parser)
    add_flags(parser)
    flags.add_flags(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what ``run`` and ``containers create`` share beyond the spec's flags."""
    parser.add_argument("image", metavar="IMAGE", help="an image's name, or a folder with --rootfs")
    parser.add_argument("id", nargs="?", default="", metavar="ID", help="the container's id")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="COMMAND")
    parser.add_argument("--platform", metavar="OS/ARCH")
    snapshotter_flag(parser)


def settle(args: argparse.Namespace) -> None:
    """Makes ``--config FILE ID`` and ``IMAGE ID`` alike. Raises CliError for missing words."""
    if args.config:
        require(not args.id, "with --config only the container's id is given")
        args.image, args.id = "", args.image
    require(args.id, "the container's id is missing: IMAGE ID [COMMAND] [ARG...]")


def run(args: argparse.Namespace) -> None:
    """Runs the container; ends sctl with its exit code."""
    settle(args)
    require(not (args.rm and args.detach), "--rm and --detach exclude each other")
    from ..checkpoints import source
    from ..connection import connect
    from ..creation import create_container
    from ..errors import Exit
    from ..execution import run_task

    with connect(args) as daemon, ExitStack() as undo:
        memory = source(daemon, args.checkpoint)
        container = create_container(daemon, args, undo)

        def keep() -> None:
            if not args.rm:
                undo.pop_all()

        code = run_task(daemon, container, args, keep, memory)
    if code:
        raise Exit(code)
