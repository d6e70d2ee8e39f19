"""Snapshotters as proxy plugins: ours in both daemons, and those of others in ours."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.diff.v1 import diff_pb2
from protos.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from snapshotters.erofs.probe import supported as erofs_supported
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import KINDS, Containerd, Daemon, Supervisord
from tests.conformance.fixtures import IMAGE
from tests.conformance.wire import Wire
from tests.e2e.proxies import NAMESPACE, Proxy, run_and_remove, running, served

Code = grpc.StatusCode


# Ours, in both daemons ----------------------------------------------------------------------


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "erofs"])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_serve_a_daemon(kind: str, snapshotter: str, image_tar: Path) -> None:
    if snapshotter == "erofs" and not erofs_supported():
        pytest.skip("this kernel has no erofs")
    with served(snapshotter) as proxy:
        with running(KINDS[kind](), proxy.table("far")) as ctr:
            run_and_remove(ctr, "far", image_tar)
        assert proxy.stop() == 0
        assert list((proxy.base / "root/snapshots").iterdir()) == []
        assert not Path(proxy.address).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_that_dies_comes_back(kind: str, image_tar: Path) -> None:
    with served("overlayfs") as proxy, running(KINDS[kind](), proxy.table("far")) as ctr:
        words = ["--snapshotter", "far"]
        ctr("images", "import", *words, str(image_tar))
        ctr("snapshots", *words, "prepare", "key")
        for _ in range(2):
            proxy.kill()
            for verb in ("ls", "usage"):
                ctr.refused("snapshots", *words, verb, says="navailable")
            ctr.refused("run", *words, IMAGE, "c", "true", says="navailable")
            assert ctr("snapshots", "ls").rows() == []
            proxy.start()
            until_reached(ctr, kind)
        assert ctr("run", "--rm", *words, IMAGE, "c", "echo", "back").out == "back\n"
        ctr("snapshots", *words, "rm", "key")


def until_reached(ctr: Ctr, kind: str) -> None:
    """Ours connects at the next call; containerd when gRPC's backoff of up to 3 s is over."""
    end = time.monotonic() + (20 if kind == "containerd" else 0)
    while ctr("snapshots", "--snapshotter", "far", "ls", code=None).code != 0:
        assert time.monotonic() < end
        time.sleep(0.1)


# Those of others, in ours -------------------------------------------------------------------


def test_containerd_is_a_snapshotter_for_ours(image_tar: Path) -> None:
    """Its service, with its namespaces and its collector, in between: ours asks it, as it would
    ask any proxy plugin, for the snapshotter "far", which it asks ours for in turn."""
    with served("overlayfs") as proxy:
        far, near = Containerd(), Supervisord()
        table = f'[proxy_plugins.far]\ntype = "snapshot"\naddress = "{far.address}"\n'
        with running(far, proxy.table("far")) as there, running(near, table) as here:
            run_and_remove(here, "far", image_tar)
            here("snapshots", "--snapshotter", "far", "prepare", "key")
            (row,) = there("snapshots", "--snapshotter", "far", "ls").rows()
            assert row[0].startswith(f"{NAMESPACE}/")
            assert row[0].endswith("/key")
            here("snapshots", "--snapshotter", "far", "rm", "key")


def test_a_daemon_of_ours_is_a_differ_for_another(image_tar: Path) -> None:
    """The near one knows no media type that the far one does; the layers are in both."""
    far, near = Supervisord(), Supervisord()
    table = f'[proxy_plugins.far]\ntype = "diff"\naddress = "{far.address}"\n'
    order = '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["far"]\n'
    with running(far, "") as there, running(near, f"{table}{order}") as here:
        there("images", "import", "--no-unpack", str(image_tar))
        here("images", "import", str(image_tar))
        assert here("run", "--rm", IMAGE, "c", "echo", "applied").out == "applied\n"
        there("images", "rm", "--sync", IMAGE)
        wire = Wire(near.address, NAMESPACE, ours=True)
        try:
            request = diff_pb2.ApplyRequest()
            request.diff.digest = "sha256:" + "0" * 64
            request.diff.media_type = "application/vnd.oci.image.layer.v1.tar"
            request.mounts.add(type="bind", source="/nowhere", options=["rbind"])
            with wire.refused(Code.NOT_FOUND, request.diff.digest):
                wire.diff.Apply(request)
            far.stop()
            with wire.refused(Code.UNAVAILABLE, "proxy plugin", far.address):
                wire.diff.Apply(request)
        finally:
            wire.close()


# What ours does about them ------------------------------------------------------------------


def plugins(daemon: Daemon) -> dict[str, introspection_pb2.Plugin]:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        stub = introspection_pb2_grpc.IntrospectionStub(channel)
        answer = stub.Plugins(introspection_pb2.PluginsRequest())
    return {f"{plugin.type}.{plugin.id}": plugin for plugin in answer.plugins}


def test_the_daemon_starts_without_the_socket_and_tells_what_it_was_told() -> None:
    proxy = Proxy("native")
    table = proxy.table(
        "far", 'capabilities = ["rebase"]', 'platform = "linux/arm64"', 'exports = { a = "b" }'
    )
    daemon = Supervisord()
    try:
        with running(daemon, table) as ctr:
            plugin = plugins(daemon)["io.containerd.snapshotter.v1.far"]
            assert not plugin.HasField("init_err")
            assert dict(plugin.exports) == {"address": proxy.address, "a": "b"}
            assert list(plugin.capabilities) == ["rebase"]
            assert [(p.os, p.architecture) for p in plugin.platforms] == [("linux", "arm64")]
            wire = Wire(daemon.address, NAMESPACE, ours=True)
            request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="far", key="key")
            with wire.refused(Code.UNAVAILABLE, "proxy plugin", proxy.address, "Prepare"):
                wire.snapshots.Prepare(request)
            proxy.start()
            assert wire.snapshots.Prepare(request).mounts
            wire.close()
            ctr("snapshots", "--snapshotter", "far", "rm", "key")
    finally:
        proxy.close()


def test_what_is_removed_while_the_proxy_is_away_goes_when_it_is_back() -> None:
    """Also what a killed daemon has left, when the proxy is not there at the next start."""
    with served("native") as proxy:
        folder = proxy.base / "root/snapshots"
        daemon = Supervisord()
        with running(daemon, proxy.table("far")) as ctr:
            words = ["--snapshotter", "far"]
            for key in ("one", "two"):
                ctr("snapshots", *words, "prepare", key)
            orphan = snapshots_pb2.PrepareSnapshotRequest(key=f"{NAMESPACE}/1/orphan")
            wire = Wire(proxy.address, NAMESPACE)
            wire.snapshots.Prepare(orphan)
            wire.close()
            assert len(list(folder.iterdir())) == 3
            proxy.kill()
            ctr("snapshots", *words, "rm", "one")
            daemon.restart()
            ctr("snapshots", *words, "rm", "two")
            proxy.start()
            end = time.monotonic() + 60
            while list(folder.iterdir()):
                assert time.monotonic() < end, daemon.log_tail()
                time.sleep(0.1)


def test_a_proxy_that_hangs_delays_nobody_else(image_tar: Path) -> None:
    with served("overlayfs") as proxy:
        table = proxy.table("far", 'timeout = "3s"')
        daemon = Supervisord()
        with running(daemon, table) as ctr:
            words = ["--snapshotter", "far"]
            ctr("images", "import", str(image_tar))
            ctr("snapshots", *words, "prepare", "one")
            ctr("snapshots", *words, "prepare", "two")
            proxy.send(signal.SIGSTOP)
            wire = Wire(daemon.address, NAMESPACE, ours=True)
            ctr("snapshots", *words, "rm", "one")  # the row goes; the rest is tried for a while
            stat_two = snapshots_pb2.StatSnapshotRequest(snapshotter="far", key="two")
            waiting = wire.snapshots.Stat.future(stat_two)
            begin = time.monotonic()
            assert ctr("run", "--rm", IMAGE, "c", "echo", "quick").out == "quick\n"
            ctr("images", "rm", "--sync", IMAGE)
            assert ctr("snapshots", "ls").rows() == []
            assert ctr("content", "ls").rows() == []
            took = time.monotonic() - begin
            with wire.refused(Code.DEADLINE_EXCEEDED, "proxy plugin", proxy.address, "Stat"):
                waiting.result()
            assert not took > 60, "somebody waits for the proxy"
            proxy.send(signal.SIGCONT)
            assert wire.snapshots.Stat(stat_two).info.name == "two"
            wire.close()
            ctr("snapshots", *words, "rm", "two")


def test_two_of_one_name_are_one_too_many() -> None:
    daemon = Supervisord()
    try:
        daemon.more = '[proxy_plugins.native]\ntype = "snapshot"\naddress = "/nowhere"\n'
        with pytest.raises(AssertionError, match=r"snapshotter\.v1\.native is registered twice"):
            daemon.start()
    finally:
        daemon.close()


# The server ---------------------------------------------------------------------------------


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snapshotters.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_help_names_every_snapshotter_and_option() -> None:
    told = serve("--help")
    assert told.returncode == 0
    for word in ("overlayfs", "native", "mount_options", "[proxy_plugins.NAME]", "SIGTERM"):
        assert word in told.stdout
    assert serve("--snapshotter", "zfs").returncode == 2


def test_the_socket_is_private_and_a_stale_one_is_replaced() -> None:
    with served("native", "--gid", "12") as proxy:
        found = Path(proxy.address).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 12, 0o660)
        proxy.kill()
        assert Path(proxy.address).exists()
        proxy.start()
        same = ["-s", "native", "-r", f"{proxy.base}/other", "-a", proxy.address]
        refused = serve(*same)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == (
            f"snapshotters.serve: address: another process serves {proxy.address}"
        )
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "nonsense"], "option 'nonsense': must be KEY=VALUE"),
        (["-o", "slow=1"], "option slow: overlayfs has no such key; it has"),
        (["-o", "root_path=/x"], "option root_path: overlayfs has no such key"),
        (["-o", "sync_remove=3"], "option sync_remove: '3' is no bool"),
        (["-o", "mount_options=x"], "option mount_options: 'x' is no list"),
    ],
)
def test_options_are_checked(tmp_path: Path, arguments: list[str], says: str) -> None:
    root = ["-s", "overlayfs", "-r", str(tmp_path / "root"), "-a", str(tmp_path / "s")]
    refused = serve(*root, *arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"snapshotters.serve: {says}")


def test_one_server_for_a_root() -> None:
    with served("native") as proxy:
        second = serve("-s", "native", "-r", f"{proxy.base}/root", "-a", f"{proxy.base}/2.sock")
        assert second.returncode == 1
        assert f"root: another process has {proxy.base}/root" in second.stderr
        daemon = Supervisord()
        uri = "io.containerd.snapshotter.v1.native"
        with running(daemon, f'[plugins."{uri}"]\nroot_path = "{proxy.base}/root"\n'):
            assert "another process has" in plugins(daemon)[uri].init_err.message


def test_a_stop_lets_calls_end() -> None:
    """SIGTERM while a native snapshot is copied: the copy is finished and answered."""
    with served("native") as proxy:
        wire = Wire(proxy.address, NAMESPACE)
        request = snapshots_pb2.PrepareSnapshotRequest(key="key")
        (mount,) = wire.snapshots.Prepare(request).mounts
        for number in range(500):
            Path(mount.source, f"file-{number}").write_text("x")
        wire.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(name="base", key="key"))
        request.parent = "base"
        copying = wire.snapshots.Prepare.future(request)
        folder = proxy.base / "root/snapshots"
        while len(list(folder.iterdir())) < 2:
            assert not copying.done()
        assert proxy.stop() == 0
        assert len(list(Path(copying.result().mounts[0].source).iterdir())) == 500
        wire.close()
