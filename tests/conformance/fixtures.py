"""Fixtures of every wire test: the daemon under test, a namespace, ``ctr`` and the stubs.

A pytest plugin, registered by the conftest of each folder of wire tests, so that all folders share
one daemon of each kind. Every test runs on Debian's containerd first and on ours after that;
``--daemon`` (or SUPERVISORD_TEST_ONLY) picks one of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protos.containerd.services.namespaces.v1 import namespaces_pb2

from . import ocitar, sweep
from .ctr import Ctr
from .daemons import KINDS, Daemon, remove_cgroups, running
from .wire import Wire

Lasting = Callable[[], AbstractContextManager[None]]
IMAGE = "docker.io/test/busybox:1"


def add_option(parser: pytest.Parser) -> None:
    """Adds ``--daemon``; safe to call from several conftests."""
    with contextlib.suppress(ValueError):
        parser.addoption("--daemon", choices=sorted(KINDS), help="run wire tests on this one only")


def register(config: pytest.Config) -> None:
    """Makes this module a plugin, once, whichever folder is collected first."""
    if not config.pluginmanager.has_plugin("supervisord-wire-tests"):
        config.pluginmanager.register(sys.modules[__name__], "supervisord-wire-tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(name, reason): runs on that daemon only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops the tests of the daemon that is not wanted, and skips those marked for one alone."""
    wanted = config.getoption("--daemon", default=None) or os.environ.get("SUPERVISORD_TEST_ONLY")
    dropped, kept = [], []
    for item in items:
        name = _daemon_of(item)
        if name and wanted and name != wanted:
            dropped.append(item)
            continue
        mark = item.get_closest_marker("only")
        if mark is not None and name and mark.args[0] != name:
            dropped.append(item)
            continue
        kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _daemon_of(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    value = call.params.get("daemon", "") if call is not None else ""
    return value if value in KINDS else ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Shows the end of the daemon's log with a failure."""
    outcome = yield
    report = outcome.get_result()
    funcargs = getattr(item, "funcargs", {})
    for name in ("daemon", "own_daemon"):
        if report.failed and isinstance(funcargs.get(name), Daemon):
            report.sections.append((f"{name} log", funcargs[name].log_tail()))


@pytest.fixture(scope="session", params=list(KINDS))
def daemon(request: pytest.FixtureRequest, lasting: Lasting, image_tar: Path) -> Iterator[Daemon]:
    """The daemon under test, for the whole session; it has run a container once."""
    started = KINDS[request.param]()
    try:
        with lasting():
            started.start()
            _warm(started, image_tar)
        yield started
    finally:
        started.close()


@pytest.fixture
def own_daemon(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon of the same kind for this test alone, to be killed and restarted."""
    with running(daemon.name) as started:
        yield started


@pytest.fixture
def unique() -> str:
    """A short name nobody else has; an identifier."""
    return "t" + uuid.uuid4().hex[:10]


@pytest.fixture
def namespace(daemon: Daemon) -> Iterator[str]:
    """A namespace of its own, emptied and removed afterwards."""
    _alive(daemon)
    name = f"sdtest-{uuid.uuid4().hex[:8]}"
    wire = Wire(daemon.address, name, ours=daemon.ours)
    try:
        wire.namespaces.Create(
            namespaces_pb2.CreateNamespaceRequest(namespace=namespaces_pb2.Namespace(name=name))
        )
        yield name
        _alive(daemon)
        sweep.namespace(wire)
    finally:
        remove_cgroups(f"/{name}")
        wire.close()


@pytest.fixture
def wire(daemon: Daemon, namespace: str) -> Iterator[Wire]:
    """The stubs in that namespace."""
    stubs = Wire(daemon.address, namespace, ours=daemon.ours)
    yield stubs
    stubs.close()


@pytest.fixture
def ctr(daemon: Daemon, namespace: str) -> Ctr:
    """``ctr`` in that namespace."""
    return Ctr(daemon.address, namespace)


@pytest.fixture(scope="session")
def image_folder() -> Iterator[Path]:
    """A folder for the session's image files."""
    path = Path(tempfile.mkdtemp(prefix="images-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def image(image_folder: Path) -> ocitar.Image:
    """The image of the shared namespace: busybox and two more layers, with whiteouts."""
    return ocitar.busybox_image()


@pytest.fixture(scope="session")
def image_tar(image: ocitar.Image, image_folder: Path) -> Path:
    """The same as an OCI layout tar."""
    return image.write(image_folder / "busybox.tar", IMAGE)


@dataclass(frozen=True)
class Shop:
    """A namespace with the busybox image unpacked in it, shared by all tests that run things."""

    namespace: str
    ctr: Ctr
    wire: Wire
    image: str
    chain_id: str


@pytest.fixture(scope="session")
def shop_namespace(daemon: Daemon, image_tar: Path) -> Iterator[str]:
    """The namespace of the shop; tests use ``shop``, which cleans up after them."""
    name = f"sdshop-{uuid.uuid4().hex[:8]}"
    Ctr(daemon.address, name)("i", "import", str(image_tar))
    yield name
    _alive(daemon)
    wire = Wire(daemon.address, name, ours=daemon.ours)
    try:
        sweep.namespace(wire)
    finally:
        wire.close()


@pytest.fixture
def shop(daemon: Daemon, shop_namespace: str, image: ocitar.Image) -> Iterator[Shop]:
    """The shared namespace; what a test leaves running in it is removed afterwards."""
    _alive(daemon)
    wire = Wire(daemon.address, shop_namespace, ours=daemon.ours)
    ctr = Ctr(daemon.address, shop_namespace)
    try:
        yield Shop(shop_namespace, ctr, wire, IMAGE, image.chain_ids[-1])
        _alive(daemon)
        sweep.tasks(wire)
        sweep.containers(wire)
        sweep.snapshots(wire, keep=frozenset(image.chain_ids))
    finally:
        remove_cgroups(f"/{shop_namespace}")
        wire.close()


def _warm(daemon: Daemon, image_tar: Path) -> None:
    """Lets the daemon start what it starts at the first need, before anybody counts processes."""
    name = f"sdwarm-{uuid.uuid4().hex[:8]}"  # also the cgroup's, so nobody else's
    wire = Wire(daemon.address, name, ours=daemon.ours)
    ctr = Ctr(daemon.address, name)
    try:
        ctr("i", "import", str(image_tar))
        ctr("run", "--rm", IMAGE, "first", "true")
        sweep.namespace(wire)
    finally:
        wire.close()


def _alive(daemon: Daemon) -> None:
    """Starts a daemon again that a test has ended, so that one failure stays one."""
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.process = None
        daemon.start()
