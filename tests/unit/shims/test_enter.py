"""Execs by hand: the same process that runc makes, and runc where anything is special."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Unknown

from .conftest import Shim, ShimRoom, needs_root, spec
from .runtimes import Spy, needs_crun

pytestmark = needs_root

_REPORT = """
grep -vE '^(Pid|PPid|NSpid|NStgid|NSpgid|NSsid|Tgid|.*ctxt_switches|Vm|Rss|HugetlbPages):?' \
    /proc/self/status | grep -vE '^(Vm|Rss|Sig[PQ]|Cpus|Mems|THP|Thread|untag)'
cat /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj
for kind in cgroup ipc mnt net pid pid_for_children user uts; do readlink /proc/self/ns/$kind; done
busybox env | busybox sort
busybox pwd
busybox ls /proc/self/fd
busybox readlink /proc/self/root
busybox stat -c '%u %g %a' /proc/self/fd/1
busybox awk '{print $6 == $1, $5 == $1, $7, $18, $19}' /proc/$$/stat
busybox grep "_ses.$1:" /proc/keys | busybox tr -s ' ' | busybox cut -d' ' -f 5-9
echo "$0 $*"
"""
"""Everything that a process can find out about itself, less what differs each time."""


async def container(
    shims: ShimRoom,
    name: str,
    arguments: dict[str, object] | None = None,
    *,
    runtime: str = "runc",
    **process: Any,
) -> tuple[Shim, Spy]:
    spy = Spy(shims.base, runtime, name)
    content = spec("c", ("/bin/sleep", "600"))
    content["process"] |= process
    content["linux"]["cgroupsPath"] += f"-{name}"
    content["linux"]["namespaces"].append({"type": "cgroup"})
    shim = await shims.shim(
        "c" + name, "/bin/sleep", "600", runtime=str(spy.path), arguments=arguments
    )
    (shim.bundle / "config.json").write_text(json.dumps(content))
    await shim.create()
    await shim.start()
    return shim, spy


async def run(shims: ShimRoom, shim: Shim, exec_id: str, process: dict[str, Any]) -> str:
    """What a process of the container prints, and its status."""
    out = shims.base / f"{shim.id}-{exec_id}.out"
    os.mkfifo(out)
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    try:
        request = v3.ExecProcessRequest(
            id=shim.id, exec_id=exec_id, stdout=str(out), stderr=str(out)
        )
        request.spec.value = json.dumps(process).encode()
        await shim.call("Exec", Empty, request)
        await shim.start(exec_id)
        status = await shim.wait(exec_id)
        await shim.delete(exec_id)
        os.set_blocking(reader, True)
        with os.fdopen(os.dup(reader)) as file:
            return f"{await asyncio.to_thread(file.read)}\nstatus {status}"
    finally:
        os.close(reader)


_CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHECKPOINT_RESTORE"]

PROCESSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "root with capabilities": {
        "capabilities": {
            "bounding": _CAPABILITIES,
            "effective": _CAPABILITIES[:2],
            "permitted": _CAPABILITIES[:3],
            "inheritable": _CAPABILITIES[:1],
            "ambient": _CAPABILITIES[:1],
        },
    },
    "user": {
        "user": {"uid": 1234, "gid": 4321, "additionalGids": [7, 8]},
        "capabilities": {"bounding": _CAPABILITIES, "permitted": _CAPABILITIES[:1]},
        "noNewPrivileges": True,
        "cwd": "/tmp",
    },
    "user with ambient capabilities": {
        "user": {"uid": 1000, "gid": 1000},
        "capabilities": dict.fromkeys(
            ("bounding", "effective", "permitted", "inheritable", "ambient"), _CAPABILITIES
        ),
    },
    "limits": {
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 63},
        ],
    },
    "environment": {"env": ["PATH=/bin", "HOME=/home/me", "A=b=c", "EMPTY=", "A=last"]},
}


@pytest.mark.parametrize("name", PROCESSES)
async def test_a_process_cannot_tell_the_difference(shims: ShimRoom, name: str) -> None:
    (shims.rootfs / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shims.rootfs.chmod(0o755)
    # Soft is hard, because runc's own start may raise the one to the other.
    limits = [{"type": "RLIMIT_NOFILE", "soft": 400, "hard": 400}]
    told = {}
    for binary in ("runc", "other"):
        shim, spy = await container(shims, binary, rlimits=limits, oomScoreAdj=77)
        process = spec("c", ("/bin/sh", "-c", _REPORT, "zero", shim.id))["process"]
        text = await run(shims, shim, "e", process | PROCESSES[name])
        assert spy.count("exec") == (binary == "other")
        # posix_spawn ignores two signals of the C library's own.
        text = text.replace("SigIgn:\t0000000080000000", "SigIgn:\t0000000000000000")
        told[binary] = re.sub(r"\[\d+\]|c(runc|other)|-(runc|other)", "", text)
        assert "status 0" in text
        assert "77" in text
        assert "CapBnd" in text
    assert told["runc"].splitlines() == told["other"].splitlines()


@pytest.mark.parametrize("binary", ["runc", "other"])
async def test_what_a_shell_ignores_in_the_background(shims: ShimRoom, binary: str) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        shim, _ = await container(shims, binary)
        process = spec("c", ("/bin/busybox", "grep", "SigIgn", "/proc/self/status"))["process"]
        text = await run(shims, shim, "e", process)
    finally:
        signal.signal(signal.SIGQUIT, before)
    ignored = int(text.split("SigIgn:")[1].split()[0], 16)
    assert not ignored & 1 << signal.SIGQUIT - 1


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"args": ["absent"]}, "executable file not found"),
        ({"args": ["/etc/passwd"]}, "permission denied"),
        ({"cwd": "/absent"}, "chdir to cwd"),
        ({"env": ["broken"]}, "environment variable"),
        ({"args": []}, "args"),
        ({"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}, "rlimit"),
    ],
)
async def test_what_is_wrong_is_told_in_the_words_of_runc(
    shims: ShimRoom, change: dict[str, Any], needle: str
) -> None:
    (shims.rootfs / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shim, spy = await container(shims, "runc")
    process = spec("c", ("/bin/true",))["process"] | change
    with pytest.raises(Unknown, match=f"(?i)OCI runtime exec failed: .*{needle}"):
        await run(shims, shim, "e", process)
    assert spy.count("exec") == 1
    assert "status 0" in await run(shims, shim, "f", spec("c", ("/bin/true",))["process"])
    assert spy.count("exec") == 1


async def test_a_frozen_container_is_refused(shims: ShimRoom) -> None:
    shim, spy = await container(shims, "runc")
    command = ["runc", "--root", str(shims.base / "rt" / "ns")]
    await asyncio.to_thread(subprocess.run, [*command, "pause", shim.id], check=True)
    process = spec("c", ("/bin/true",))["process"]
    with pytest.raises(Unknown, match="paused"):
        await run(shims, shim, "e", process)
    await asyncio.to_thread(subprocess.run, [*command, "resume", shim.id], check=True)
    assert "status 0" in await run(shims, shim, "f", process)
    assert spy.count("exec") == 1


async def test_the_interpreter_cannot_be_written_from_inside(shims: ShimRoom) -> None:
    """CVE-2019-5736: the program is replaced by a link to whoever executes it, and that runs with
    a loader of the container's choice."""
    loaders = [*Path("/lib64").glob("ld-linux*"), *Path("/lib").glob("ld-linux*")]
    made = [shims.rootfs / "bin" / "evil", *(shims.rootfs / str(path)[1:] for path in loaders)]
    for path in made[1:]:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(shims.rootfs / "bin" / "busybox", path)
    made[0].write_text("#!/proc/self/exe\n")
    made[0].chmod(0o755)
    try:
        shim, spy = await container(shims, "runc")
        await run(shims, shim, "e", spec("c", ("/bin/evil",))["process"])
        assert spy.count("exec") == 0  # so it was executed
        assert os.statvfs(f"/proc/{shim.pid}/exe").f_flag & os.ST_RDONLY
    finally:
        for path in made:
            path.unlink()


async def test_nothing_is_imported_from_the_container(shims: ShimRoom) -> None:
    """The report of a failure inside must not bring in modules either."""
    shim, _ = await container(shims, "runc")
    for number in range(5):
        with pytest.raises(Unknown):
            await run(shims, shim, f"e{number}", spec("c", ("absent",))["process"])
    fds = shim.fds()
    for number in range(5):
        await run(shims, shim, f"f{number}", spec("c", ("/bin/true",))["process"])
    assert shim.fds() == fds


async def test_it_can_be_switched_off(shims: ShimRoom) -> None:
    shim, spy = await container(shims, "runc", {"exec_by_hand": False})
    await run(shims, shim, "e", spec("c", ("/bin/true",))["process"])
    assert spy.count("exec") == 1


@pytest.mark.parametrize(
    "special",
    [
        {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
        {"namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]},
    ],
    ids=["seccomp", "pid namespace of the host"],
)
async def test_special_containers_are_left_to_runc(
    shims: ShimRoom, special: dict[str, Any]
) -> None:
    spy = Spy(shims.base, "runc")
    shim = await shims.shim("special", "/bin/sleep", "600", runtime=str(spy.path), **special)
    await shim.create()
    await shim.start()
    await run(shims, shim, "e", spec("c", ("/bin/true",))["process"])
    assert spy.count("exec") == 1


@needs_crun
async def test_crun_starts_quicker_than_a_fork(shims: ShimRoom) -> None:
    shim, spy = await container(shims, "crun", runtime="crun")
    assert "status 0" in await run(shims, shim, "e", spec("c", ("/bin/true",))["process"])
    assert spy.count("exec") == 1
