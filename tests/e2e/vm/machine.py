"""Boots the machine in software emulation, and hands over what its script prints.

Used by the tests of this folder, and by hand: ``python -m tests.e2e.vm COMMAND ..`` runs a command
of this source tree in it.
"""

from __future__ import annotations

import platform
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from . import image

_QEMU = f"qemu-system-{platform.machine()}"
_MIB = 1536
_ENDED = "machine ended: "


def lines(script: str, seconds: float) -> Iterator[str]:
    """Runs a shell script in a fresh machine and yields the lines that it prints, as they come.

    The last one is ``machine ended: STATUS``. Raises image.Missing, and AssertionError with the
    kernel's last words when the machine does not end in time."""
    qemu = image._program(_QEMU)
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        folder = Path(name)
        kernel, initramfs, disk = image.build(folder, script)
        console = folder / "console"
        command = [
            qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(_MIB),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(kernel), "-initrd", str(initramfs),
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on",
            "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
            "-serial", f"file:{console}", "-serial", "stdio",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield from _read(process, console, time.monotonic() + seconds)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _read(process: subprocess.Popen[bytes], console: Path, deadline: float) -> Iterator[str]:
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_pump, args=(process, found), daemon=True)
    reader.start()
    try:
        while True:
            try:
                line = found.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"the machine did not end in time:\n{_tail(console)}"
                ) from None
            if line == _LOST:
                raise AssertionError(f"the machine broke off:\n{_tail(console)}")
            yield line
            if line.startswith(_ENDED):
                return
    finally:
        process.kill()
        reader.join()


_LOST = "\0"


def _pump(process: subprocess.Popen[bytes], found: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        found.put(line.decode(errors="replace").rstrip("\r\n"))
    found.put(_LOST)


def _tail(console: Path) -> str:
    try:
        return console.read_text(errors="replace")[-3000:]
    except OSError:
        return "(it has said nothing)"
