"""The room in which all tests run: hostile to whatever is sloppy.

Warnings are errors and asyncio is in debug mode (both from pyproject.toml). A test fails that
leaves a descriptor, thread, process, mount, control group, network namespace or asyncio task
behind, or, among the unit tests, blocks the event loop.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import gc
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests import leaks
from tests.blocking import Watch

_UNIT = Path(__file__).parent / "unit"
_DAEMON = re.compile(r"[\[-](containerd|supervisord)[\]-]")
_RUN = os.environ.setdefault("SUPERVISORD_TEST_RUN", str(os.getpid()))
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_CI = bool(os.environ.get("CI"))
_tasks_left: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves(why): the test may leave things behind, because ..")
    config.addinivalue_line("markers", "blocks(why): the test may block the event loop, because ..")


class ByDaemon(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Tests of one daemon share it, and all that it has: one worker runs them, in order. Unit tests
    go to whoever is free.

    Groups are found by names: marks (``xdist_group``) have no effect with pytest 9.2 and xdist 3.8,
    which sets an attribute that pytest does not read any more."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/unit/"):
            return nodeid
        if nodeid.startswith("tests/e2e/vm/"):
            return "vm"
        found = _DAEMON.search(nodeid)
        return found[1] if found else "machine"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByDaemon:
    return ByDaemon(config, log)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


# Skips --------------------------------------------------------------------------------------

_KERNELS = ("this kernel has no ", "no memory controller here", "runsc does not run")
_MACHINE = ("the machine is an x86_64", "the machine is not to be had: ")
"""That of ``tests/e2e/vm``: not every processor can be it, not every distribution has its parts."""
_NOTHING_TO_TEST = (
    "the noun is a command itself",
    "containerd accepts this",
    "CRIU is here",
    "containerd-stargz-grpc is not installed",
)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """``./dev test`` installs what tests need: in CI only the kernel may be a reason to skip, that
    the machine to test in is not to be had, or that there is nothing to test."""
    outcome = yield
    report = outcome.get_result()
    if _CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[-1]).removeprefix("Skipped: ")
        if not reason.startswith(_KERNELS + _MACHINE + _NOTHING_TO_TEST):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, which it may not be here: {reason}"


# The whole run ------------------------------------------------------------------------------

_census = pytest.StashKey[leaks.Census]()
_everything = leaks.Room(mark=f"{_RUN}.", folders=(), alone=_CI, inside=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where tests run in parallel, control groups and the like are compared once, at the end."""
    if not _WORKER:
        session.config.stash[_census] = leaks.take(_everything)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Fails the run if it leaves behind what no single test could be blamed for."""
    before = config.stash.get(_census, None)
    left = leaks.left_behind(_everything, before) if before is not None else []
    if left:
        terminalreporter.section("left behind by the whole run", red=True)
        for line in left:
            terminalreporter.write_line(line)
        session = terminalreporter._session
        if session is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


# The room -----------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def short_temporary_folder() -> Iterator[Path]:
    """``tempfile`` works in a folder of this process; its path is short enough for sockets."""
    previous = tempfile.tempdir, os.environ.get("TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    yield folder
    tempfile.tempdir = previous[0]
    if previous[1] is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = previous[1]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory, short_temporary_folder: Path) -> leaks.Room:
    """Whose leaks count in this process."""
    mark = f"{_RUN}.{_WORKER}."
    os.environ[leaks.MARK] = mark
    folders = (f"{tmp_path_factory.getbasetemp()}/", f"{short_temporary_folder}/")
    return leaks.Room(mark, folders, alone=_CI and not _WORKER)


@pytest.fixture(scope="session")
def lasting(room: leaks.Room) -> Callable[[], AbstractContextManager[None]]:
    """For fixtures that outlive a test but are asked for late: set up inside ``lasting()``."""
    return lambda: leaks.lasting(room)


@pytest.fixture(scope="session")
def loop_watch() -> Watch:
    """The one watch over callbacks of this process."""
    return Watch()


@pytest.fixture(scope="session", autouse=True)
def finished_tasks() -> Iterator[None]:
    """A loop that closes while tasks are unfinished notes them, before it cancels them."""
    original: Callable[[asyncio.AbstractEventLoop], Any] = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def noting(loop: asyncio.AbstractEventLoop) -> None:
        tasks = asyncio.all_tasks(loop)
        if tasks:  # those that are about to end may do so
            _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=0.5))
        _tasks_left.extend(repr(task) for task in tasks)
        original(loop)

    asyncio.runners._cancel_all_tasks = noting  # type: ignore[attr-defined]
    yield
    asyncio.runners._cancel_all_tasks = original  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest, room: leaks.Room, loop_watch: Watch
) -> Iterator[None]:
    """Compares what there is before and after each test."""
    watched = request.path.is_relative_to(_UNIT)
    _tasks_left.clear()
    before = leaks.take(room)
    if watched:
        loop_watch.start()
    yield
    blocked = loop_watch.stop() if watched else []
    left = [f"asyncio task {task}" for task in _tasks_left]
    left += leaks.left_behind(room, before)
    node = request.node
    if left and node.get_closest_marker("leaves") is None:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)
    if blocked and node.get_closest_marker("blocks") is None:
        pytest.fail("\n".join(blocked), pytrace=False)
