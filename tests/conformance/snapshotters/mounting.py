"""Mounts what a snapshotter answers, as a client would, with mount(8)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from supervisord.contracts.snapshots import Mount


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mounts all of them on ``target``, made if need be; unmounts at the end."""
    target.mkdir(parents=True, exist_ok=True)
    done = 0
    try:
        for mount in mounts:
            _mount(mount, target)
            done += 1
        yield target
    finally:
        for _ in range(done):
            subprocess.run(["umount", str(target)], check=True)


def _mount(mount: Mount, target: Path) -> None:
    options = list(mount.options)
    folder = "/"
    lower = next((each for each in options if each.startswith("lowerdir=")), "")
    layers = lower.removeprefix("lowerdir=").split(":")
    if len(layers) > 1:  # a page must hold all options: name the layers from a common folder
        folder = os.path.commonpath(layers)
        short = ":".join(os.path.relpath(layer, folder) for layer in layers)
        options[options.index(lower)] = f"lowerdir={short}"
    command = ["mount", "-n", "--no-canonicalize", "-t", mount.type, "-o", ",".join(options)]
    if mount.type == "bind":
        command[3:5] = []
    subprocess.run([*command, mount.source, str(target)], check=True, cwd=folder)
