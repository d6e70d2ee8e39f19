"""A shim that obeys a script: it stands between the daemon and the real one. Stdlib only.

It reads ``SELF.json`` beside itself: ``real`` (the path of the real shim) and ``script``: for each
verb a list of steps, taken off the list as they are carried out. Verbs are ``start`` and ``delete``
of the program, and the methods of its task service. Every verb that was told to misbehave appends
``VERB PID WHAT`` to ``SELF.log``.

A step is an object with ``end``: ``fail`` (with ``message``; ``late``: the real one does it first),
``hang``, ``crash`` (both shims are gone), ``part`` (the connection ends), ``partial`` (half of the
answer, and then the connection ends), ``garble`` (an answer that is none), ``text`` (what ``start``
prints).
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2
BASE = os.path.abspath(sys.argv[0])

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Step = dict[str, Any]


def take(verb: str) -> Step:
    """The next step of a verb; empty for none."""
    with open(f"{BASE}.json", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = json.load(file)
        steps = told["script"].get(verb)
        step: Step = steps.pop(0) if steps else {}
        if step:
            file.seek(0)
            file.truncate()
            json.dump(told, file)
            file.flush()
            with open(f"{BASE}.log", "a") as log:
                log.write(f"{verb} {os.getpid()} {step['end']}\n")
    return {**step, "real": told["real"]}


def main() -> None:
    action = sys.argv[-1]
    step = take(action)
    end = step.get("end")
    if end == "hang":
        time.sleep(3600)
    elif end == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    real = subprocess.run([step["real"], *sys.argv[1:]], stdout=subprocess.PIPE, check=False) if (
        end != "fail" or step.get("late")
    ) else None  # fmt: skip
    if end == "fail":
        if real is not None and action == "start":
            kill(real.stdout.decode().strip())
        sys.exit(str(step["message"]))
    assert real is not None
    if real.returncode:
        sys.exit(real.returncode)
    if action != "start":
        sys.stdout.buffer.write(step.get("text", "").encode() or real.stdout)
        return
    address = real.stdout.decode().strip().removeprefix("unix://")
    if end == "text":
        kill(address)
        sys.stdout.write(str(step["text"]))
        return
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.f")
    listener.listen(16)
    sys.stdout.write(f"unix://{address}.f")
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        Between(listener, address).run()


def kill(address: str) -> None:
    """Ends the real shim, which serves there."""
    os.kill(real_pid(), signal.SIGKILL)
    os.unlink(address.removeprefix("unix://"))


def real_pid() -> int:
    """The pid of the real shim: the one whose command line names our container."""
    wanted = sys.argv[sys.argv.index("-id") + 1].encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        name = os.path.basename(words[0])
        if name == b"containerd-shim-runc-v2" and wanted in words and b"start" not in words:
            return int(pid)
    raise SystemExit("the real shim is not there")


class Between:
    """Passes frames on, both ways."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self._listener = listener
        self._address = address
        self._shim = real_pid()
        self._pidfd = os.pidfd_open(self._shim)

    def run(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            client, _ = self._listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._address)
            threading.Thread(target=Link(self, client, server).run, daemon=True).start()

    def _watch(self) -> None:
        """Ends with the real shim."""
        select.select([self._pidfd], [], [])
        self._end()

    def crash(self) -> None:
        os.kill(self._shim, signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        for path in (self._address, f"{self._address}.f"):
            if os.path.exists(path):
                os.unlink(path)
        os._exit(1)


class Link:
    """One connection and its twin to the real shim."""

    def __init__(self, between: Between, client: socket.socket, server: socket.socket) -> None:
        self._between = between
        self._client = client
        self._server = server
        self._late: dict[int, Step] = {}

    def run(self) -> None:
        threading.Thread(target=self._answers, daemon=True).start()
        try:
            while frame := read(self._client):
                self._request(*frame)
        except OSError:
            pass
        self._hang_up()

    def _request(self, stream: int, type: int, flags: int, data: bytes) -> None:
        step = take(method(data)) if type == REQUEST else {}
        end = step.get("end")
        if end == "fail" and not step.get("late"):
            write(self._client, stream, RESPONSE, 0, failure(str(step["message"])))
        elif end == "garble":
            write(self._client, stream, RESPONSE, 0, b"\xff" * 40)
        elif end == "crash":
            self._between.crash()
        elif end == "part":
            self._hang_up()
        elif end != "hang":
            if end:
                self._late[stream] = step
            write(self._server, stream, type, flags, data)

    def _answers(self) -> None:
        try:
            while frame := read(self._server):
                stream, type, flags, data = frame
                step = self._late.pop(stream, None)
                if step and step["end"] == "partial":
                    self._client.sendall(HEADER.pack(len(data) + 9, stream, type, flags) + data)
                    break
                if step:
                    data = failure(str(step["message"]))
                write(self._client, stream, type, flags, data)
        except OSError:
            pass
        self._hang_up()

    def _hang_up(self) -> None:
        for sock in (self._client, self._server):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def read(sock: socket.socket) -> tuple[int, int, int, bytes] | None:
    """The next frame: stream, type, flags, data."""
    head = exactly(sock, HEADER.size)
    if head is None:
        return None
    length, stream, type, flags = HEADER.unpack(head)
    data = exactly(sock, length)
    return None if data is None else (stream, type, flags, data)


def exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            return None
        data += part
    return data


def write(sock: socket.socket, stream: int, type: int, flags: int, data: bytes) -> None:
    sock.sendall(HEADER.pack(len(data), stream, type, flags) + data)


def method(data: bytes) -> str:
    """Field 2 of a ttrpc Request, which follows field 1; both are short strings."""
    at = 2 + data[1]
    return data[at + 2 : at + 2 + data[at + 1]].decode()


def failure(message: str) -> bytes:
    """A ttrpc Response with the status UNKNOWN."""
    text = message.encode()
    status = b"\x08\x02\x12" + bytes([len(text)]) + text
    return b"\x0a" + bytes([len(status)]) + status


if __name__ == "__main__":
    main()
