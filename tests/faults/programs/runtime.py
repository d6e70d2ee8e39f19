"""An OCI runtime that obeys a script, then is the real one. A program of its own: stdlib only.

It reads ``SELF.json`` beside itself: ``real`` (the path of the real runtime) and ``script``: for
each verb a list of steps, one for each call, taken off the list as they are carried out; without
one the real runtime is executed. Every call appends ``VERB PID WHAT`` to ``SELF.log``.

A step is an object: ``delay`` seconds first; then ``end``: ``fail`` (with ``status``, and
``message`` in the ``log`` that the caller named or on standard error), ``hang``, ``crash`` (by
``signal``), ``cut`` (the real runtime is killed as soon as something matches the pattern ``path``,
in which STATE is the container's state folder), ``garble`` (the real one, and then ``text`` in
place of the pid that it wrote); ``late`` means that the real one runs first.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import signal
import subprocess
import sys
import time

VALUED = ("--root", "--log", "--log-format", "--criu")


def main() -> None:
    base = os.path.abspath(sys.argv[0])
    flags, verb, rest = parse(sys.argv[1:])
    with open(f"{base}.json", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = json.load(file)
        steps = told["script"].get(verb)
        step = steps.pop(0) if steps else {}
        if step:
            file.seek(0)
            file.truncate()
            json.dump(told, file)
            file.flush()
        note(base, verb, os.getpid(), str(step.get("end", "real")))
    command = [told["real"], *sys.argv[1:]]
    time.sleep(step.get("delay", 0))
    if step.get("late"):
        status = subprocess.run(command, check=False).returncode
        if status:
            sys.exit(status)
    if step.get("end") == "hang":
        hang(base, verb)
    carry_out(step, command, flags, rest)
    os.execv(command[0], command)  # noqa: S606


def parse(arguments: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """The flags before the verb, the verb, and what follows it."""
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        flags[flag] = rest.pop(0) if flag in VALUED else ""
    return flags, (rest or [""])[0], rest[1:]


def carry_out(step: dict[str, object], command: list[str], flags: dict[str, str],
              rest: list[str]) -> None:  # fmt: skip
    """Returns where the real runtime is to follow."""
    end = step.get("end")
    if end == "fail":
        fail(step, flags)
    elif end == "crash":
        os.kill(os.getpid(), int(str(step["signal"])))
        time.sleep(60)
    elif end == "cut":
        cut(command, str(step["path"]).replace("STATE", f"{flags['--root']}/{rest[-1]}"))
    elif end == "garble":
        subprocess.run(command, check=True)
        with open(rest[rest.index("--pid-file") + 1], "w") as file:
            file.write(str(step["text"]))
        sys.exit(0)


def note(base: str, verb: str, pid: int, what: str) -> None:
    with open(f"{base}.log", "a") as log:
        log.write(f"{verb} {pid} {what}\n")


def hang(base: str, verb: str) -> None:
    """For ever, and with a child, because real ones have children too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "3600"])
    note(base, f"{verb}-child", child.pid, "hang")
    while True:
        time.sleep(60)


def fail(step: dict[str, object], flags: dict[str, str]) -> None:
    message = str(step.get("message", ""))
    if step.get("log"):
        with open(flags["--log"], "a") as file:
            file.write(str(step["log"]).replace("MESSAGE", message))
    else:
        sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(int(str(step.get("status", 1))))


def cut(command: list[str], path: str) -> None:
    process = subprocess.Popen(command)
    while process.poll() is None and not glob.glob(path):
        pass
    process.kill()
    process.wait()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
