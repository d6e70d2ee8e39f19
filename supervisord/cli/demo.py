"""``python -m supervisord.cli.demo``: the main job from end to end, on this machine, in seconds.

Starts a daemon of its own in a temporary folder, makes an image from the machine's static busybox,
imports it, runs containers, watches them, removes everything, stops the daemon and looks for what
might be left. Each step is a ``sctl`` command as a person would type it. Needs root and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from .demo_image import DEFAULT_NAME, build
from .errors import CliError

_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 20.0
_STEP_TIMEOUT = 60.0
_EVENT_FIELDS = ("name", "digest", "key", "container_id", "id", "pid", "exit_status")
_METRICS = (
    "container_cpu",
    "container_memory",
    "container_pids",
    "grpc_server_handled_total",
    "process_resident_memory_bytes",
)


class Style:
    """Colours where somebody looks, none where a file or a pipe does."""

    def __init__(self, coloured: bool) -> None:
        self._coloured = coloured

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def title(self, text: str) -> None:
        """A step begins."""
        sys.stdout.write("\n" + self._paint("1;36", f"== {text}") + "\n")

    def command(self, words: Sequence[str]) -> None:
        """What would be typed."""
        sys.stdout.write(self._paint("2", "$ " + " ".join(map(_quoted, words))) + "\n")
        sys.stdout.flush()

    def good(self, text: str) -> None:
        """Something is as it should be."""
        sys.stdout.write(self._paint("32", "ok ") + text + "\n")

    def bad(self, text: str) -> None:
        """Something is not."""
        sys.stdout.write(self._paint("1;31", "failed ") + text + "\n")

    def line(self, text: str) -> None:
        """Plain text."""
        sys.stdout.write(text + "\n")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _quoted(word: str) -> str:
    return word if word and not set(word) & set(" '\"$;|&<>*\n") else f"'{word}'"


class Demo:
    """One run. ``base`` is the temporary folder with everything in it but the cgroups."""

    def __init__(self, base: Path, style: Style) -> None:
        self.base = base
        self.root = base / "root"
        self.state = base / "state"
        self.address = str(base / "supervisord.sock")
        self.log = base / "supervisord.log"
        self.namespace = f"demo-{os.getpid()}"
        self.port = _free_port()
        self.style = style
        self.daemon: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "CONTAINERD_ADDRESS": self.address,
            "CONTAINERD_NAMESPACE": self.namespace,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def sctl(self, *words: str, quiet: bool = False, expect: int = 0) -> str:
        """Runs one command, its output shown as it comes; answers it. Raises CliError when its
        exit code is another than expected."""
        if not quiet:
            self.style.command(["sctl", *words])
        done = subprocess.run(
            [sys.executable, "-m", "supervisord.cli.main", *words],
            cwd=self.base,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_STEP_TIMEOUT,
            check=False,
        )
        if not quiet:
            sys.stdout.write(done.stdout)
        if done.returncode != expect:
            raise CliError(
                f"sctl {' '.join(words)} ended with {done.returncode} instead of {expect}: "
                + done.stdout.strip()
            )
        return done.stdout

    def start(self, *, again: bool = False) -> None:
        """Starts the daemon and waits until it serves."""
        config = self.base / "config.toml"
        config.write_text(f'version = 3\n[metrics]\naddress = "127.0.0.1:{self.port}"\n')
        words = ["--config", str(config), "--root", str(self.root), "--state", str(self.state),
                 "--address", self.address]  # fmt: skip
        self.style.command(["supervisord", *(["..."] if again else words)])
        begin = time.monotonic()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "supervisord.daemon.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        while not _listens(self.address):
            if self.daemon.poll() is not None or time.monotonic() - begin > _START_TIMEOUT:
                raise CliError(f"the daemon did not start; {self.log} says:\n{self.log_tail()}")
            time.sleep(0.02)
        self.style.good(f"pid {self.daemon.pid}, serving after {time.monotonic() - begin:.2f} s")

    def stop(self) -> None:
        """Stops the daemon with SIGTERM. Raises CliError when it does not end cleanly."""
        if self.daemon is None:
            return
        daemon, self.daemon = self.daemon, None
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        try:
            code = daemon.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(_STOP_TIMEOUT)
            raise CliError(f"the daemon did not stop within {_STOP_TIMEOUT:.0f} s") from None
        if code != 0:
            raise CliError(f"the daemon ended with {code}:\n{self.log_tail()}")
        self.style.good("the daemon stopped cleanly")

    def kill(self) -> None:
        """Ends the daemon without a chance to do anything about it."""
        if self.daemon is not None:
            self.style.command(["kill", "-9", str(self.daemon.pid)])
            self.daemon.kill()
            self.daemon.wait(_STOP_TIMEOUT)
            self.daemon = None

    def log_tail(self, size: int = 2000) -> str:
        """The end of the daemon's log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def show_image(self) -> None:
        """Makes, imports and lists the image."""
        self.style.title("An image, made from this machine's busybox")
        archive = build(self.base / "busybox.tar")
        self.style.good(f"{archive.name} ({archive.stat().st_size >> 10} KiB)")
        self.sctl("images", "import", archive.name)
        self.sctl("images", "ls")

    def show_run(self) -> None:
        """A container whose output lands on the terminal, and one whose exit code does."""
        self.style.title("A container, its output and its exit code")
        script = 'echo "hello from $(hostname), pid $$"; cat /proc/version; id'
        self.sctl("run", "--rm", "--hostname", "demo", DEFAULT_NAME, "hello", "sh", "-c", script)
        self.sctl("run", "--rm", DEFAULT_NAME, "code", "sh", "-c", "exit 42", expect=42)
        self.style.good("exit code 42 came through")

    def show_detached(self) -> None:
        """A container in the background, seen from all sides."""
        self.style.title("A container in the background")
        log = self.base / "ticker.log"
        script = "while :; do echo tick; sleep 0.2; done"
        self.sctl("run", "-d", "--log-uri", f"file://{log}", "--memory-limit", "64M",
                  DEFAULT_NAME, "ticker", "sh", "-c", script)  # fmt: skip
        self.sctl("tasks", "ls")
        self.sctl("tasks", "exec", "ticker", "ps")
        self.sctl("top", "--interval", "500ms")
        self.sctl("logs", "--tail", "2", "ticker")
        self.show_metrics()
        self.show_restart()
        self.sctl("tasks", "rm", "--force", "ticker")
        self.sctl("containers", "rm", "ticker")

    def show_metrics(self) -> None:
        """A few lines of what Prometheus would read."""
        self.style.title("Metrics")
        url = f"http://127.0.0.1:{self.port}/metrics"
        self.style.command(["curl", url])
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [line for line in lines if line.startswith(_METRICS)]
        for prefix in _METRICS:
            for line in [item for item in wanted if item.startswith(prefix)][:2]:
                self.style.line(line if len(line) <= 110 else line[:107] + "...")
        if not any("ticker" in line for line in wanted):
            raise CliError("the metrics do not mention the container")

    def show_restart(self) -> None:
        """The daemon is killed; its container is not."""
        self.style.title("kill -9 of the daemon: the container does not notice")
        before = self._pid("ticker")
        self.kill()
        self.start(again=True)
        self.sctl("tasks", "ls")
        if self._pid("ticker") != before:
            raise CliError("the task has another pid than before the restart")
        self.style.good(f"still pid {before}")

    def _pid(self, id: str) -> str:
        for line in self.sctl("tasks", "ls", quiet=True).splitlines():
            words = line.split()
            if words[0] == id and words[2] == "RUNNING":
                return words[1]
        raise CliError(f"task {id} does not run")

    def watch(self, stack: ExitStack) -> Path:
        """Begins to note all events."""
        path = self.base / "events.txt"
        out = stack.enter_context(path.open("wb"))
        watcher = subprocess.Popen(
            [sys.executable, "-m", "supervisord.cli.main", "events", "--format", "json"],
            env=self._environment,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(watcher.wait, 10)
        stack.callback(watcher.terminate)
        time.sleep(0.5)
        return path

    def run(self) -> None:
        """All steps in order; raises CliError at the first that fails."""
        self.style.title("A daemon of its own")
        self.start()
        self.sctl("version")
        self.show_plugins()
        with ExitStack() as stack:
            events = self.watch(stack)
            self.show_image()
            self.show_run()
        self.show_events(events)
        self.show_detached()
        self.style.title("Cleaning up")
        self.sctl("images", "rm", "--sync", DEFAULT_NAME)
        self.sctl("namespaces", "rm", self.namespace)
        self.stop()

    def show_plugins(self) -> None:
        """How many plugins started, and which did not."""
        rows = [line.split() for line in self.sctl("plugins", "ls", quiet=True).splitlines()[1:]]
        self.style.command(["sctl", "plugins", "ls"])
        bad = [row[1] for row in rows if row[-1] == "error"]
        skipped = [row[1] for row in rows if row[-1] == "skip"]
        started = len(rows) - len(bad) - len(skipped)
        note = f", {len(skipped)} skipped ({', '.join(skipped)})" if skipped else ""
        self.style.good(f"{started} plugins{note}")
        if bad:
            raise CliError(f"plugins failed: {', '.join(bad)}")

    def show_events(self, path: Path) -> None:
        """The events that the steps so far have caused."""
        self.style.title("What the daemon told about it")
        self.style.command(["sctl", "events"])
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            fields = event["event"]
            told = [f"{key}={_short(fields[key])}" for key in _EVENT_FIELDS if key in fields]
            self.style.line(f"{event['timestamp'][11:23]} {event['topic']:<18} {' '.join(told)}")
        seen = {event["topic"] for event in events}
        for topic in ("/images/create", "/tasks/start", "/tasks/exit", "/tasks/delete"):
            if topic not in seen:
                raise CliError(f"there was no event {topic}")

    def left(self) -> list[str]:
        """What is still there and should not be, a line each."""
        marks = (str(self.base).encode(), f"CONTAINERD_NAMESPACE={self.namespace}".encode())
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self.base) in line:
                found.append(f"mount {line.split()[4]}")
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or process.name == str(os.getpid()):
                continue
            try:
                words = (process / "cmdline").read_bytes()
                if any(mark in words for mark in marks):
                    text = words.replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"process {process.name}: {text}")
            except OSError:
                continue
        for group in self.groups():
            try:
                # The namespace's own folder stays behind with every containerd; it is empty.
                group.rmdir()
            except OSError:
                found.append(f"cgroup {group}")
        return found

    def groups(self) -> list[Path]:
        """The namespace's folder in each cgroup hierarchy."""
        top = Path("/sys/fs/cgroup")
        return [
            folder / self.namespace
            for folder in (top, *top.iterdir())
            if (folder / self.namespace).is_dir()
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; answers 0 only when every step did what it should and nothing is left."""
    parser = argparse.ArgumentParser(prog="demo", description="Shows the main job, end to end.")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    args = parser.parse_args(argv)
    style = Style(sys.stdout.isatty())
    if os.geteuid() != 0:
        style.bad("the demo runs containers, so it needs root")
        return 1
    begin = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="sd-demo-"))
    demo = Demo(base, style)
    failed = True
    try:
        demo.run()
        failed = False
    except (CliError, OSError, subprocess.SubprocessError) as error:
        style.bad(str(error))
    except KeyboardInterrupt:
        style.bad("interrupted")
    finally:
        failed = _end(demo, failed=failed, keep=args.keep) or failed
    if not failed:
        style.good(f"the whole demo took {time.monotonic() - begin:.1f} s")
    return 1 if failed else 0


def _end(demo: Demo, *, failed: bool, keep: bool) -> bool:
    """Ends what still runs, reports what is left; True if that was not in order."""
    style = demo.style
    style.title("What is left")
    wrong = False
    try:
        demo.stop()
    except CliError as error:
        style.bad(str(error))
        wrong = True
    if failed:
        _sweep(demo)
    left = demo.left()
    for line in left:
        style.bad(f"left behind: {line}")
    if not left:
        style.good("no mounts, no processes, no cgroups")
    if keep or failed or left:
        style.line(f"everything was in {demo.base}; the daemon's log is {demo.log}")
        return wrong or bool(left)
    log = Path(tempfile.gettempdir()) / "supervisord-demo.log"
    shutil.copyfile(demo.log, log)
    shutil.rmtree(demo.base)
    style.line(f"everything was in {demo.base} and is gone; the daemon's log is {log} (--keep)")
    return wrong


def _sweep(demo: Demo) -> None:
    """After a failure: ends our own leftover processes and mounts, so that a machine is not left
    with them. What it ends is known by the demo's own folder or namespace, never by a name."""
    members = [file for group in demo.groups() for file in group.rglob("cgroup.procs")]
    pids = {int(word) for file in members for word in file.read_text().split()}
    for line in demo.left():
        kind, _, rest = line.partition(" ")
        if kind == "process":
            pids.add(int(rest.partition(":")[0]))
        elif kind == "mount":
            subprocess.run(["umount", "-l", rest], check=False, timeout=10)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    for file in sorted(members, reverse=True):
        with suppress(OSError):
            file.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
