"""The flags that say where the streams of a task go. Light: ``--help`` needs no gRPC for them."""

from __future__ import annotations

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say where a task's streams go."""
    group = parser.add_argument_group("streams")
    group.add_argument("--detach", "-d", action="store_true", help="return once it has started")
    group.add_argument("--null-io", action="store_true", help="discard all output")
    group.add_argument("--log-uri", metavar="URI", type=log_uri,
        help="let the shim write the output: file:///x.log, cri:///0.log, binary:///x")  # fmt: skip
    group.add_argument("--fifo-dir", metavar="DIR",
        help="where to make FIFOs (default: the folder fifo beside the socket)")  # fmt: skip
    group.add_argument("--pid-file", metavar="FILE", help="write the process id to a file")
    group.add_argument("--no-pivot", action="store_true", help="do not use pivot_root")


def checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """Adds ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="IMAGE|FOLDER",
        help="go on from this checkpoint: an image, or a folder by its absolute path",
    )


def log_uri(text: str) -> str:
    """A URI; a plain absolute path means a file."""
    if text.startswith("/"):
        return f"file://{text}"
    if "://" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URI like file:///var/log/x.log")
    return text
