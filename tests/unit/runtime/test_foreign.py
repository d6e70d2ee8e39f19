"""Shims of other makers: what they print, and containerd's own runc shim for real."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from supervisord.contracts.errors import (
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from supervisord.contracts.tasks import Status
from supervisord.linux import process
from supervisord.runtime import bootstrap, creation, names
from supervisord.runtime.bootstrap import Endpoint
from supervisord.runtime.bundle import ShimRecord

from .conftest import NS, Engine, needs_root, told, until
from .test_groups import member

SHIM = shutil.which("containerd-shim-runc-v2")


def bootstrap_result(**fields: object) -> bytes:
    return bootstrap_pb2.BootstrapResult(**fields).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "endpoint"),
    [
        (b"unix:///run/s/abc\n", Endpoint("/run/s/abc", 2)),
        (b"/containerd-shim/abc.sock", Endpoint("@/containerd-shim/abc.sock", 2)),
        (b"/dev/null", Endpoint("/dev/null", 2)),
        (b"abstract@name", Endpoint("@abstract@name", 2)),
        (
            b'{"version": 3, "address": "unix:///run/s/x", "protocol": "ttrpc"}\n',
            Endpoint("/run/s/x", 3),
        ),
        (b'{"version": 2, "address": "unix:///run/s/x", "protocol": ""}', Endpoint("/run/s/x", 2)),
        (
            bootstrap_result(version=3, address="unix:///run/s/x", protocol="TTRPC"),
            Endpoint("/run/s/x", 3),
        ),
        (bootstrap_result(version=2, address="unix:///run/s/x"), Endpoint("/run/s/x", 2)),
    ],
)
def test_what_a_shim_prints(output: bytes, endpoint: Endpoint) -> None:
    assert bootstrap.parse(output) == endpoint


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (b"", Unknown),
        (b'{"version": 9, "address": "unix:///x", "protocol": "ttrpc"}', Unimplemented),
        (b'{"version": 3, "address": "unix:///x", "protocol": "grpc"}', Unimplemented),
        (b'{"version": 3, "address": "vsock://3:1024", "protocol": "ttrpc"}', Unimplemented),
    ],
)
def test_what_we_do_not_speak(output: bytes, kind: type[Error]) -> None:
    with pytest.raises(kind):
        bootstrap.parse(output)


def test_names() -> None:
    assert names.resolve("io.containerd.runc.v2") == ""
    assert names.shim_binary("io.containerd.kata.v2") == "containerd-shim-kata-v2"
    assert names.resolve("/bin/sh") == "/bin/sh"
    for bad in ("", "runc", ".v2", "a/b.v2", "a..v2", "a.b\0.v2"):
        with pytest.raises(InvalidArgument, match="runtime"):
            names.resolve(bad)
    with pytest.raises(NotFound, match="binary not installed 'containerd-shim-nobody-v7'"):
        names.resolve("io.containerd.nobody.v7")
    with pytest.raises(NotFound, match="invalid custom binary path"):
        names.resolve("/no/such/shim")


def test_where_a_shim_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(folder: str) -> str:
        program = tmp_path / folder / "containerd-shim-my-own-v1"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        return str(program)

    name = "io.example.many.dots.my-own.v1"
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")
    monkeypatch.setattr(sys, "argv", [f"{tmp_path}/beside/supervisord"])
    with pytest.raises(NotFound):
        names.resolve(name)
    beside = install("beside")
    assert names.resolve(name) == beside
    in_path = install("bin")
    assert names.resolve(name) == in_path
    assert names.resolve(name, named={name: "/named"}) == "/named"
    assert names.resolve("io.containerd.runc.v2", named={name: "/named"}) == ""
    named = {"io.containerd.runc.v2": "/named"}
    assert names.resolve("io.containerd.runc.v2", named=named) == "/named"


needs_shim = pytest.mark.skipif(SHIM is None, reason="needs containerd-shim-runc-v2")


@needs_root
@needs_shim
async def test_containerds_own_shim(engine: Engine) -> None:
    assert SHIM is not None
    events = engine.exchange.subscribe()
    request = engine.container("web", "sh", "-c", "exit 3", runtime=SHIM)
    pid = await engine.manager.create(NS, request)
    assert await engine.manager.start(NS, "web") == pid
    exit = await engine.manager.wait(NS, "web")
    assert (exit.pid, exit.exit_status) == (pid, 3)
    await engine.restart()
    assert [task.exit_status for task in await engine.manager.list(NS)] in ([3], [0])
    assert (await engine.manager.get(NS, "web")).status is Status.STOPPED
    assert (await engine.manager.delete(NS, "web")).exit_status == 3
    assert [topic for topic, _ in await told(events, 3)] == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
    ]


@needs_root
@needs_shim
async def test_containerds_own_shim_dies(engine: Engine) -> None:
    assert SHIM is not None
    pid = await engine.manager.create(NS, engine.container("web", "sleep", "60", runtime=SHIM))
    await engine.manager.start(NS, "web")
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    os.kill(engine.manager._tasks[NS, "web"].record.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 20)).exit_status == 137
    assert await until(lambda: process.start_time(pid) is None)


@needs_root
@needs_shim
async def test_a_failed_create_of_a_foreign_shim(engine: Engine) -> None:
    assert SHIM is not None
    request = engine.container("web", "no-such-program", runtime=SHIM)
    with pytest.raises(Unknown, match="no-such-program"):
        await engine.manager.create(NS, request)
    await engine.clean()


@needs_root
async def test_a_program_that_is_no_shim(engine: Engine) -> None:
    request = engine.container("web", "true", runtime="/bin/false")
    with pytest.raises(Unknown, match="shim '/bin/false' start: exit status 1"):
        await engine.manager.create(NS, request)
    await engine.clean()


# Shims of all ages ---------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]

OURS = """\
#!{python}
import sys
sys.path[:0] = {path}
import shims.bootstrap, shims.main
shims.bootstrap.SOCKETS = shims.main._RUNTIME_ROOT = {base!r}
"""

LOGS = """
open({base!r} + "/runs", "a").write(sys.argv[-1] + "\\n")
"""

NEWER = """
import io
from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
if sys.argv[-1] == "start":
    data = sys.stdin.buffer.read()
    params = bootstrap_pb2.BootstrapParams.FromString(data)
    if params.instance_id not in sys.argv:
        sys.exit("shim: shim was started through the deprecated API")
    assert params.containerd_ttrpc_address and params.containerd_binary
    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
"""

MAIN = """
shims.main.main()
"""

BOASTS = """\
#!/bin/sh
if [ "$(eval echo \\$$#)" = start ]; then
  printf '{"version": 3, "address": "%s", "protocol": "ttrpc"}' "$(SHIM "$@")"
else
  exec SHIM "$@"
fi
"""

HANGS = """
import shims.service
async def hang(self, request):
    await self._loop.sleep(3600)
for name, (_, kind) in list(shims.service.METHODS.items()):
    if name[1] == "Create":
        shims.service.METHODS[name] = hang, kind
"""

Program = Callable[[str], str]


@pytest.fixture
def program(engine: Engine) -> Program:
    """Writes an executable and answers its path."""

    def write(text: str) -> str:
        path = engine.base / "containerd-shim-test-v1"
        text = text.replace("{python}", sys.executable).replace("{base!r}", repr(str(engine.base)))
        path.write_text(text.replace("{path}", repr([str(ROOT)])))
        # Nothing that another thread forks just now must have it open for writing.
        installed = path.with_suffix(".installed")
        subprocess.run(["install", "-m", "755", path, installed], check=True)
        installed.rename(path)
        return str(path)

    return write


def version(engine: Engine, id: str) -> int:
    return engine.manager._tasks[NS, id].record.version


async def live(engine: Engine, id: str, shim: str) -> None:
    await engine.manager.create(NS, engine.container(id, "sh", "-c", "exit 7", runtime=shim))
    await engine.manager.start(NS, id)
    assert (await engine.manager.wait(NS, id)).exit_status == 7


@needs_root
async def test_a_shim_that_reads_options(engine: Engine, program: Program) -> None:
    await live(engine, "web", program(OURS + LOGS + MAIN))
    assert version(engine, "web") == 2
    await engine.manager.delete(NS, "web")
    # The program cleans up after every container, as containerd has it.
    assert (engine.base / "runs").read_text().split() == ["start", "delete"]


@needs_root
async def test_a_shim_that_reads_parameters(engine: Engine, program: Program) -> None:
    shim = program(OURS + LOGS + NEWER + MAIN)
    await live(engine, "web", shim)
    assert version(engine, "web") == 3
    await engine.restart()
    assert (await engine.manager.get(NS, "web")).exit_status == 7
    await engine.manager.delete(NS, "web")
    await live(engine, "web", shim)
    await live(engine, "two", shim)
    # Each daemon finds out once.
    runs = "start start delete start start start".split()
    assert (engine.base / "runs").read_text().split() == runs


@needs_root
@needs_shim
async def test_a_shim_that_promises_too_much(engine: Engine, program: Program) -> None:
    """The program may be newer than the shim of a pod that it found."""
    assert SHIM is not None
    await live(engine, "web", program(BOASTS.replace("SHIM", SHIM)))
    assert version(engine, "web") == 2
    await engine.restart()
    assert (await engine.manager.get(NS, "web")).status is Status.STOPPED


@needs_root
async def test_a_create_that_hangs(
    engine: Engine, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends even if nobody is left who would cancel it."""
    monkeypatch.setattr(creation, "_FOREIGN_SECONDS", 0.2)
    request = engine.container("web", "true", runtime=program(OURS + HANGS + MAIN))
    with pytest.raises(DeadlineExceeded):
        await engine.manager.create(NS, request)
    await engine.clean()
    monkeypatch.undo()
    await live(engine, "web", program(OURS + MAIN))


@needs_root
async def test_what_a_shim_is_told(engine: Engine, program: Program) -> None:
    engine.settings = replace(engine.settings, shim_env={"EXTRA": "more"})
    await engine.restart()
    text = '#!/bin/sh\n{ pwd; echo "$@"; env; } > {base!r}/told\nexit 1\n'
    shim = program(text)
    with pytest.raises(Unknown, match="start: exit status 1"):
        await engine.manager.create(NS, engine.container("web", "true", runtime=shim))
    bundle, *said = (engine.base / "told").read_text().splitlines()
    assert bundle == f"{engine.settings.state}/tasks/{NS}/web"
    for words in (f"-namespace {NS}", f"-address {engine.settings.address}", "-id web"):
        assert words in said[0]
    assert said[0].endswith(f"-bundle {bundle} -debug delete")
    assert {
        "GOMAXPROCS=2",
        "MAX_SHIM_VERSION=2",
        f"TTRPC_ADDRESS={engine.settings.ttrpc_address}",
        f"GRPC_ADDRESS={engine.settings.address}",
        f"NAMESPACE={NS}",
        "EXTRA=more",
    } <= set(said)


@needs_root
@needs_shim
async def test_several_foreign_shims_at_once(engine: Engine) -> None:
    assert SHIM is not None
    names = [f"m{number}" for number in range(4)]
    await asyncio.gather(*(live(engine, name, SHIM) for name in names))
    await engine.restart()
    await asyncio.gather(*(engine.manager.delete(NS, name) for name in names))


@needs_root
@needs_shim
async def test_a_foreign_shim_of_a_group(engine: Engine) -> None:
    """It makes its groups itself, and lives as long as any of its containers."""
    assert SHIM is not None
    for name in ("one", "two"):
        request = member(engine, name, "sleep", "60", runtime=SHIM)
        await engine.manager.create(NS, request)
        await engine.manager.start(NS, name)
    shims = {engine.manager._tasks[NS, name].record.pid for name in ("one", "two")}
    (shim,) = shims
    await engine.remove("one")
    await engine.restart()
    assert (await engine.manager.get(NS, "two")).status is Status.RUNNING
    await engine.remove("two")
    assert await until(lambda: process.start_time(shim) is None)


@needs_root
@needs_shim
@pytest.mark.parametrize("told", [True, False], ids=["recorded", "unrecorded"])
async def test_a_half_made_task_of_a_foreign_shim(engine: Engine, told: bool) -> None:
    """The daemon died before the shim had answered, or even before it had printed its address."""
    assert SHIM is not None
    pid = await engine.manager.create(NS, engine.container("web", "sleep", "60", runtime=SHIM))
    task = engine.manager._tasks[NS, "web"]
    shim = task.record.pid
    address = task.record.address if told else ""
    task.bundle.write_record(ShimRecord(address, binary=SHIM))
    await engine.restart()
    assert await until(lambda: process.start_time(pid) is None)
    assert await until(lambda: process.start_time(shim) is None)
    await engine.clean()
    await live(engine, "web", SHIM)
