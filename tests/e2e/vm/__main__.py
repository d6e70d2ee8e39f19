"""``python -m tests.e2e.vm COMMAND ..``: runs a command of this tree in the machine."""

from __future__ import annotations

import shlex
import sys
import time

from . import image, machine


def main() -> int:
    """Prints what the command prints, with the seconds since the start; ends as it does."""
    command = shlex.join(sys.argv[1:]) or "sh -c 'uname -a; cat /proc/self/cgroup'"
    bin = f"{sys.prefix}/bin"
    script = f"cd {image.REPOSITORY}\nPATH={bin}:$PATH PYTHONPATH={image.REPOSITORY} {command}\n"
    begin = time.monotonic()
    line = ""
    for line in machine.lines(script, 3600):
        print(f"{time.monotonic() - begin:7.1f} {line}", flush=True)
    return int(line.rpartition(" ")[2] or 1)


if __name__ == "__main__":
    sys.exit(main())
