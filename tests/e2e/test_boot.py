"""The daemon as a process: how it starts, refuses to start, reports itself, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from protos.containerd.services.version.v1 import version_pb2_grpc
from protos.containerd.types import types_pb2
from protos.supervisord.gc.v1 import gc_pb2, gc_pb2_grpc
from tests import leaks

REPOSITORY = Path(__file__).resolve().parents[2]
READY = 2.0
PATIENCE = 20.0
SHIM = shutil.which("containerd-shim-runc-v2")


@pytest.fixture(scope="module", autouse=True)
def client_threads(lasting: Any) -> Iterator[None]:
    """gRPC's threads, which the first channel of a process starts."""
    with lasting(), grpc.insecure_channel("unix:/nonexistent"):
        yield


class Box:
    """A folder for one daemon, and the processes that were started in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.address = str(base / "s.sock")
        self.environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        self.processes: list[subprocess.Popen[str]] = []

    def arguments(self, *more: str) -> list[str]:
        paths = [f"--root={self.base}/root", f"--state={self.base}/state"]
        command = [sys.executable, "-m", "supervisord.daemon.main", *paths]
        return [*command, f"--address={self.address}", *more]

    def start(self, *more: str, **environment: str) -> subprocess.Popen[str]:
        with (self.base / "log").open("a") as log:
            process = subprocess.Popen(
                self.arguments(*more),
                cwd=REPOSITORY,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def refused(self, *more: str) -> str:
        """What a start that must fail prints; the status is 1."""
        done = subprocess.run(
            self.arguments(*more),
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 1, done.stderr
        return done.stderr

    def config(self, text: str) -> str:
        file = self.base / "config.toml"
        file.write_text(textwrap.dedent(text))
        return f"--config={file}"

    def package(self, name: str, entries: str, source: str) -> str:
        """Where to find a package of one module that has entry points."""
        site = self.base / "site"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[supervisord.plugins]\n{entries}\n")
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        return f"{site}:{REPOSITORY}"

    def wait_ready(self) -> float:
        """Seconds until it serves."""
        begin = time.monotonic()
        while time.monotonic() < begin + PATIENCE:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.address) == 0:
                    return time.monotonic() - begin
            assert self.processes[-1].poll() is None, self.log()
            time.sleep(0.01)
        raise AssertionError(f"not ready: {self.log()}")

    def log(self) -> str:
        return (self.base / "log").read_text()

    def stop(self) -> int:
        """The exit status after SIGTERM."""
        self.processes[-1].send_signal(signal.SIGTERM)
        return self.processes[-1].wait(PATIENCE)

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            yield channel

    def version(self) -> str:
        from google.protobuf.empty_pb2 import Empty

        with self.channel() as channel:
            stub = version_pb2_grpc.VersionStub(channel)
            return stub.Version(Empty(), timeout=10, wait_for_ready=True).version

    def plugins(self) -> dict[str, introspection_pb2.Plugin]:
        with self.channel() as channel:
            stub = introspection_pb2_grpc.IntrospectionStub(channel)
            reply = stub.Plugins(introspection_pb2.PluginsRequest(), timeout=10)
        return {f"{plugin.type}.{plugin.id}": plugin for plugin in reply.plugins}

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=PATIENCE)
        shutil.rmtree(self.base)


@pytest.fixture
def box() -> Iterator[Box]:
    box = Box(Path(tempfile.mkdtemp(prefix="boot-")))
    try:
        yield box
    finally:
        box.close()


def test_ready_in_time_with_every_plugin_and_stopped_without_a_trace(box: Box) -> None:
    process = box.start()
    assert box.wait_ready() < READY + 3 * (os.getloadavg()[0] > 2)
    assert box.version().startswith("v")
    bad = {
        name: plugin.init_err.message
        for name, plugin in box.plugins().items()
        if plugin.HasField("init_err") and not plugin.init_err.message.endswith("skip plugin")
    }
    assert bad == {}
    assert stat.S_IMODE(os.stat(box.address).st_mode) == 0o660
    assert stat.S_IMODE(os.stat(box.base / "root").st_mode) == 0o700
    assert box.stop() == 0
    assert process.stdout is not None and process.stdout.read() == ""
    assert not os.path.exists(box.address)
    assert not os.path.exists(f"{box.address}.ttrpc")
    assert "level=error" not in box.log()


def test_what_nobody_has_used_is_not_loaded(box: Box) -> None:
    box.start(PYTHONPROFILEIMPORTTIME="1")
    box.wait_ready()
    assert box.version()
    loaded = {line.rpartition("|")[2].strip() for line in box.log().splitlines() if "|" in line}
    assert "supervisord.metadata.store" in loaded
    idle = {"supervisord.images.transfers", "supervisord.metadata.check", "importlib.metadata"}
    assert not idle & loaded
    assert box.stop() == 0


def test_containerds_plugins_have_containerds_names(box: Box) -> None:
    box.start()
    box.wait_ready()
    names = box.plugins().keys()
    for name in (
        "io.containerd.content.v1.content",
        "io.containerd.snapshotter.v1.overlayfs",
        "io.containerd.snapshotter.v1.native",
        "io.containerd.differ.v1.walking",
        "io.containerd.event.v1.exchange",
        "io.containerd.gc.v1.scheduler",
        "io.containerd.lease.v1.manager",
        "io.containerd.runtime.v2.task",
        "io.containerd.service.v1.tasks-service",
        "io.containerd.grpc.v1.tasks",
        "io.containerd.grpc.v1.healthcheck",
        "io.containerd.grpc.v1.introspection",
    ):
        assert name in names
    assert box.stop() == 0


def test_the_runtime_tells_its_features(box: Box) -> None:
    box.start()
    box.wait_ready()
    with box.channel() as channel:
        stub = introspection_pb2_grpc.IntrospectionStub(channel)
        request = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
        request.options.type_url = "containerd.types.RuntimeRequest"
        reply = stub.PluginInfo(request, timeout=30)
        assert reply.plugin.id == "task"
        info = types_pb2.RuntimeInfo.FromString(reply.extra.value)
        assert info.name == "io.containerd.runc.v2"
        request.id = "none"
        with pytest.raises(grpc.RpcError, match="not found"):
            stub.PluginInfo(request, timeout=10)
    assert box.stop() == 0


def test_what_a_package_keeps_takes_part_in_collections(box: Box) -> None:
    path = box.package(
        "tunnels",
        "tunnels = tunnels:REGISTRATION",
        """
        from supervisord.contracts.collectible import Collectible
        from supervisord.contracts.plugins import Registration

        class Tunnels:
            kind = "tunnel"

            def __init__(self):
                self.open = {"idle": Collectible("ns", "idle"),
                             "busy": Collectible("ns", "busy", active=True)}

            def resources(self):
                return list(self.open.values())

            async def collect(self, resource):
                del self.open[resource.key]

        async def start(context):
            tunnels = Tunnels()
            context.get("io.containerd.metadata.v1").garbage.attach(tunnels)
            return tunnels

        METADATA = ("io.containerd.metadata.v1",)
        REGISTRATION = Registration("io.example.tunnel.v1", "tunnels", start, METADATA)
        """,
    )
    slow = "[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = '1h'\n"
    box.start(box.config(slow), PYTHONPATH=path)
    box.wait_ready()
    metadata = (("containerd-namespace", "ns"),)
    with grpc.insecure_channel(f"unix:{box.address}") as channel:
        stub = gc_pb2_grpc.GCStub(channel)
        (part,) = stub.Preview(gc_pb2.PreviewRequest(), timeout=10)
        assert [(d.namespace, d.type, d.id) for d in part.doomed] == [("ns", "tunnel", "idle")]
        assert dict(stub.Collect(gc_pb2.CollectRequest(), timeout=10).records) == {"tunnel": 1}
        request = gc_pb2.ExplainRequest(id="busy")
        (answer,) = stub.Explain(request, metadata=metadata, timeout=10).explanations
        assert [link.reason for chain in answer.chains for link in chain.links] == ["in use"]
        with pytest.raises(grpc.RpcError, match="nothing in namespace"):
            stub.Explain(gc_pb2.ExplainRequest(id="idle"), metadata=metadata, timeout=10)
    assert box.stop() == 0


def test_a_second_signal_ends_a_stop_that_hangs(box: Box) -> None:
    path = box.package(
        "stuck",
        "stuck = stuck:REGISTRATION",
        """
        import asyncio, time
        from supervisord.contracts.plugins import Registration

        async def start(context):
            async def close():
                await asyncio.to_thread(time.sleep, 600)
            context.on_close(close)
            return object()

        REGISTRATION = Registration("io.example.stuck.v1", "stuck", start)
        """,
    )
    process = box.start(PYTHONPATH=path)
    box.wait_ready()
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while "stopping" not in box.log() or os.path.exists(box.address):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 1
    assert "stopped by a second signal" in box.log()
    shutil.rmtree(box.base / "site")
    box.start()
    box.wait_ready()
    assert box.stop() == 0


def test_one_daemon_per_root(box: Box) -> None:
    first = box.start()
    box.wait_ready()
    said = box.refused(f"--address={box.base}/other.sock")
    assert said.count("\n") == 1
    assert f"another supervisord (pid {first.pid}) runs on root {box.base}/root" in said
    assert box.version()
    assert box.stop() == 0


def test_one_daemon_per_state(box: Box) -> None:
    box.start()
    box.wait_ready()
    printed = box.refused(f"--root={box.base}/other", f"--address={box.base}/other.sock")
    assert f"(pid {box.processes[0].pid}) runs on state {box.base}/state" in printed
    assert len(printed.splitlines()) == 1
    assert box.stop() == 0


def test_a_folder_that_cannot_be_made_is_named(box: Box) -> None:
    (box.base / "file").write_text("")
    printed = box.refused(f"--root={box.base}/file/root")
    assert printed == f"supervisord: root: cannot make {box.base}/file/root: Not a directory\n"


def test_signals_that_do_not_end_it(box: Box) -> None:
    from google.protobuf.empty_pb2 import Empty

    box.start()
    box.wait_ready()
    for number, words in ((signal.SIGHUP, "SIGHUP passed over"), (signal.SIGUSR1, "msg=stacks")):
        box.processes[-1].send_signal(number)
        begin = time.monotonic()
        while words not in box.log() and time.monotonic() < begin + PATIENCE:
            time.sleep(0.01)
        assert words in box.log()
    assert "lifecycle.py" in box.log()
    with box.channel() as channel:
        assert version_pb2_grpc.VersionStub(channel).Version(Empty()).version
    assert box.stop() == 0


def test_a_root_is_free_again_after_a_kill(box: Box) -> None:
    box.start().kill()
    box.processes[-1].wait()
    box.start()
    box.wait_ready()
    box.processes[-1].kill()
    box.processes[-1].wait()
    assert os.path.exists(box.address)  # stale now
    box.start()
    box.wait_ready()
    assert box.version()
    assert box.stop() == 0


def test_a_foreign_socket_or_file_is_not_taken(box: Box) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(box.address)
        other.listen()
        assert f"another process serves {box.address}" in box.refused()
    os.unlink(box.address)
    Path(box.address).write_text("precious")
    assert "exists and is not a socket" in box.refused()
    assert Path(box.address).read_text() == "precious"


def test_a_config_mistake_stops_the_start_with_one_line(box: Box) -> None:
    said = box.refused(box.config("[plugins.'io.containerd.gc.v1.scheduler']\npause = 1\n"))
    assert said.count("\n") == 1
    assert "pause; the nearest known one is" in said
    assert "pause_threshold" in said
    assert not (box.base / "root").exists()


def test_a_bad_value_of_a_plugin_is_reported_or_fatal(box: Box) -> None:
    bad = "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['none']\n"
    said = box.refused(
        box.config("required_plugins = ['io.containerd.service.v1.diff-service']\n" + bad)
    )
    assert (
        "required plugin io.containerd.service.v1.diff-service did not start: differ none"
        in (said.splitlines()[-1])
    )
    box.start(box.config(bad))
    box.wait_ready()
    plugins = box.plugins()
    assert "differ none" in plugins["io.containerd.service.v1.diff-service"].init_err.message
    assert plugins["io.containerd.grpc.v1.diff"].HasField("init_err")
    assert not plugins["io.containerd.grpc.v1.tasks"].HasField("init_err")
    assert box.stop() == 0


def test_a_damaged_database_stops_the_start_with_one_line(box: Box) -> None:
    file = box.base / "root/io.containerd.metadata.v1.sqlite/metadata.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a database" * 100)
    *skipped, said = box.refused().splitlines()
    assert all('msg="plugin skipped"' in line for line in skipped)  # what this machine has not
    assert f"metadata.v1.sqlite did not start: {file}: file is not a database" in said


def test_disabled_plugins_do_not_start(box: Box) -> None:
    box.start(box.config("disabled_plugins = ['io.containerd.snapshotter.v1.native']\n"))
    box.wait_ready()
    assert "io.containerd.snapshotter.v1.native" not in box.plugins()
    assert box.stop() == 0


def test_the_service_manager_hears_of_start_and_stop(box: Box) -> None:
    path = box.base / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        process = box.start(NOTIFY_SOCKET=str(path))
        assert manager.recv(256).decode() == f"READY=1\nMAINPID={process.pid}"
        assert box.version()
        assert box.stop() == 0
        assert manager.recv(256) == b"STOPPING=1"


def test_a_stop_ends_streams_that_never_end(box: Box) -> None:
    from protos.containerd.services.events.v1 import events_pb2, events_pb2_grpc

    box.start()
    box.wait_ready()
    with box.channel() as channel:
        events = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())
        events.initial_metadata()
        begin = time.monotonic()
        assert box.stop() == 0
        assert time.monotonic() - begin < 5
        with pytest.raises(grpc.RpcError):
            next(events)
    assert "level=error" not in box.log()


def test_json_logs_are_json(box: Box) -> None:
    box.start("--log-format=json")
    box.wait_ready()
    assert box.stop() == 0
    records = [json.loads(line) for line in box.log().splitlines()]
    [ready] = [record for record in records if record["msg"] == "ready"]
    assert ready["address"] == box.address
    assert {"time", "level", "room"} <= ready.keys()


def test_another_package_brings_a_plugin(box: Box) -> None:
    path = box.package(
        "extra",
        "mine = extra:REGISTRATION\nbroken = extra:MISSING",
        """
        from pathlib import Path
        from snapshotters.native import NativeSnapshotter
        from supervisord.contracts.plugins import Registration

        async def start(context):
            snapshotter = await NativeSnapshotter.open(Path(context.root))
            context.on_close(snapshotter.close)
            context.export("shade", context.config["shade"])
            return snapshotter

        REGISTRATION = Registration(
            "io.containerd.snapshotter.v1", "extra", start, config={"shade": "dark"}
        )
        """,
    )
    config = box.config("[plugins.'io.containerd.snapshotter.v1.extra']\nshade = 'light'\n")
    box.start(config, PYTHONPATH=path)
    box.wait_ready()
    extra = box.plugins()["io.containerd.snapshotter.v1.extra"]
    assert not extra.HasField("init_err")
    assert extra.exports["shade"] == "light"
    from protos.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc

    with box.channel() as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="extra", key="k")
        mounts = stub.Prepare(request, metadata=(("containerd-namespace", "n"),), timeout=10).mounts
    assert mounts[0].source.startswith(str(box.base / "root"))
    assert 'msg="plugin not loaded"' in box.log()
    assert box.stop() == 0


@pytest.mark.skipif(SHIM is None, reason="containerd's shim is not installed")
def test_another_package_brings_a_runtime(box: Box) -> None:
    path = box.package(
        "fast",
        "good = fast:GOOD\nbad = fast:BAD",
        f"""
        from supervisord.contracts.plugins import Registration

        async def good(context):
            return {SHIM!r}

        async def bad(context):
            return "/nonexistent"

        GOOD = Registration("io.supervisord.shim.v1", "org.example.fast.v1", good)
        BAD = Registration("io.supervisord.shim.v1", "org.example.bad.v1", bad)
        """,
    )
    box.start(PYTHONPATH=path)
    box.wait_ready()
    with box.channel() as channel:
        stub = introspection_pb2_grpc.IntrospectionStub(channel)
        request = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")

        def ask(runtime: str) -> str:
            request.options.Pack(types_pb2.RuntimeRequest(runtime_path=runtime))
            request.options.type_url = "containerd.types.RuntimeRequest"
            try:
                stub.PluginInfo(request, timeout=20)
            except grpc.RpcError as error:
                return str(error.details())
            return ""

        assert "binary not installed 'containerd-shim-bad-v1'" in ask("org.example.bad.v1")
        # It is found, and runs; the shim of containerd 1.6 has no -info.
        assert "not installed" not in ask("org.example.fast.v1")
    assert 'msg="shim is no executable"' in box.log()
    assert box.stop() == 0


def test_metrics_are_served_where_configured(box: Box) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box.start(box.config(f"[metrics]\naddress = '127.0.0.1:{port}'\ngrpc_histogram = true\n"))
    box.wait_ready()
    box.version()
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics") as reply:
                text = reply.read().decode()
            break
        assert time.monotonic() < deadline
    for line in (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Version",'
        'grpc_service="containerd.services.version.v1.Version",grpc_type="unary"} 1.0',
        "supervisord_shims_running 0.0",
    ):
        assert line in text
    assert "grpc_server_handling_seconds_bucket" in text
    assert "supervisord_event_loop_lag_seconds_bucket" in text
    assert box.stop() == 0


def test_the_marker_of_the_room_reaches_the_daemon() -> None:
    """Leaks of the daemon are found by a mark in its environment."""
    assert leaks.MARK in os.environ
