"""What the runtime is asked for by a checkpoint or a restore, and what a failed one leaves.

CRIU is a stand-in that says yes, the runtime is runc but for the two verbs: ``tests/e2e/vm`` has
the real thing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.task.v3 import shim_pb2 as v3
from protos.containerd.v1.types import task_pb2
from supervisord.contracts.errors import FailedPrecondition, Unknown
from supervisord.linux import mount

from .conftest import ShimRoom

RUNC = shutil.which("runc")
CheckpointOptions = options_pb2.CheckpointOptions

SCRIPT = """#!/bin/sh
case " $* " in
*" checkpoint "* | *" restore "*)
	echo "$*" >> {kept}
	[ ! -e {fails} ] || exit 1 ;;
*) exec {runc} "$@" ;;
esac
"""


class Runtime:
    """runc, with checkpoints and restores that are only written down; they fail once ``fails``
    exists."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runc"
        self.kept = folder / "kept"
        self.fails = folder / "fails"
        script = SCRIPT.format(kept=self.kept, fails=self.fails, runc=RUNC)
        for name, text in (("criu", "#!/bin/sh\n"), ("runc", script)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def last(self, verb: str) -> list[str]:
        """The words after the verb of the last call."""
        words = self.kept.read_text().splitlines()[-1].split()
        return words[words.index(verb) + 1 :]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Ask for it before ``shims``, whose processes inherit the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield Runtime(folder)


def packed(message: Message) -> AnyMessage:
    name = message.DESCRIPTOR.full_name
    return AnyMessage(type_url=name, value=message.SerializeToString())


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (CheckpointOptions(), ["--leave-running"]),
        (CheckpointOptions(exit=True), []),
        (CheckpointOptions(exit=True, open_tcp=True), ["--tcp-established"]),
        (CheckpointOptions(exit=True, external_unix_sockets=True), ["--ext-unix-sk"]),
        (CheckpointOptions(exit=True, terminal=True), ["--shell-job"]),
        (CheckpointOptions(exit=True, file_locks=True), ["--file-locks"]),
        (
            CheckpointOptions(exit=True, empty_namespaces=["network", "ipc"]),
            ["--empty-ns", "network", "--empty-ns", "ipc"],
        ),
        (CheckpointOptions(exit=True, cgroups_mode="soft"), ["--manage-cgroups-mode", "soft"]),
        (CheckpointOptions(exit=True, parent_path="../one"), ["--parent-path", "../one"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value).strip() or "none",
)
async def test_options_of_a_checkpoint(
    runtime: Runtime, shims: ShimRoom, options: options_pb2.CheckpointOptions, flags: list[str]
) -> None:
    shim = await shims.shim("one", "/bin/sleep", "60", runtime=str(runtime.path))
    await shim.create()
    await shim.start()
    request = v3.CheckpointTaskRequest(id="one", path="/image", options=packed(options))
    await shim.call("Checkpoint", Empty, request)
    work = f"{shim.bundle}/criu-work"
    first = ["--image-path", "/image", "--work-path", work]
    assert runtime.last("checkpoint") == [*first, *flags, "one"]
    assert not Path(work).exists()
    await shims.events.until("/tasks/checkpointed")
    (event,) = shims.events.of("/tasks/checkpointed")
    assert (event.container_id, event.checkpoint) == ("one", "/image")


async def test_a_work_path_is_kept_and_a_failure_names_the_log(
    runtime: Runtime, shims: ShimRoom
) -> None:
    shim = await shims.shim("one", "/bin/sleep", "60", runtime=str(runtime.path))
    await shim.create()
    await shim.start()
    work = shims.base / "work"
    work.mkdir()
    (work / "dump.log").write_text("what CRIU says")
    runtime.fails.touch()
    options = CheckpointOptions(work_path=str(work))
    request = v3.CheckpointTaskRequest(id="one", path="/image", options=packed(options))
    with pytest.raises(Unknown, match=rf"path= {shim.bundle}/criu-dump\.log"):
        await shim.call("Checkpoint", Empty, request)
    assert (shim.bundle / "criu-dump.log").read_text() == "what CRIU says"
    assert runtime.last("checkpoint")[2:4] == ["--work-path", str(work)]
    assert work.is_dir()
    assert (await shim.state()).status == task_pb2.RUNNING
    assert "/tasks/checkpointed" not in shims.events.topics


async def test_a_restore_that_fails_leaves_nothing_and_can_be_tried_again(
    runtime: Runtime, shims: ShimRoom
) -> None:
    shim = await shims.shim("one", "/bin/sleep", "60", runtime=str(runtime.path))
    options = options_pb2.Options(no_pivot_root=True, criu_work_path=str(shims.base / "work"))
    out = shims.fifo("out")
    pid = await shim.create(
        checkpoint="/image", parent_checkpoint="/older", stdout=out, options=packed(options)
    )
    assert pid == 0
    await shims.events.until("/tasks/create")
    before = shim.fds()
    assert (await shim.state()).status == task_pb2.CREATED
    with pytest.raises(FailedPrecondition, match="cannot exec in a created container"):
        await shim.exec("early", "/bin/true")
    for all in (False, True):
        with pytest.raises(FailedPrecondition, match="process not created"):
            await shim.call("Kill", Empty, v3.KillRequest(id="one", signal=9, all=all))
    runtime.fails.touch()
    for _ in range(3):
        with pytest.raises(Unknown, match="OCI runtime restore failed"):
            await shim.start()
        assert (await shim.state()).status == task_pb2.CREATED
        assert shim.fds() == before
    words = runtime.last("restore")
    assert words[words.index("--image-path") + 1] == "/image"
    assert words[words.index("--parent-path") + 1] == "/older"
    assert words[words.index("--work-path") + 1] == str(shims.base / "work")
    assert {"--detach", "--no-subreaper", "--no-pivot"} <= set(words)
    await shim.delete()
    assert not mount.mounted(str(shim.bundle / "rootfs"))
    assert shim.fds() == before
