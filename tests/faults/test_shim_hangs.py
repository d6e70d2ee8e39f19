"""A shim of another maker that hangs at one of its verbs: the request ends after a time, which is
told, nothing is left, and the same id works again."""

from __future__ import annotations

import concurrent.futures
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Supervisord, alive, remove_cgroups
from tests.conformance.fixtures import IMAGE, Shop
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire

from .fakes import HANG, FakeShim
from .residue import Residue
from .test_shim_fails import Stage

SECONDS = 4
"""How long a shim may take here."""

VERBS = (
    "start", "Connect", "Exec", "Kill", "Pids", "Pause", "Resume", "Update", "CloseIO",
    "ResizePty", "Delete",
)  # fmt: skip
"""Those that have a deadline of this kind; creates and starts of containers may take longer."""


class Impatient(Supervisord):
    """A daemon that does not wait for long."""

    def command(self) -> list[str]:
        words = super().command()
        with open(words[words.index("--config") + 1], "a") as config:
            config.write(
                f'[plugins."io.containerd.runtime.v2.task"]\nshim_timeout = "{SECONDS}s"\n'
            )
        return words


@pytest.fixture
def impatient(image: Image, image_tar: Path) -> Iterator[tuple[Supervisord, Shop]]:
    daemon = Impatient()
    namespace = f"sdhang-{uuid.uuid4().hex[:8]}"
    try:
        daemon.start(timeout=60)
        ctr, wire = Ctr(daemon.address, namespace), Wire(daemon.address, namespace, ours=True)
        ctr("i", "import", str(image_tar))
        try:
            yield daemon, Shop(namespace, ctr, wire, IMAGE, image.chain_ids[-1])
            sweep.namespace(wire)
        finally:
            wire.close()
    finally:
        remove_cgroups(f"/{namespace}")
        daemon.close()


def hang(stage: Stage, verb: str) -> grpc.StatusCode | None:
    """Has the shim hang at the verb; answers the code that the client gets."""
    request = stage.request(verb)
    stage.fake.tell({verb: [HANG]})
    try:
        request()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def test_a_shim_that_hangs(impatient: tuple[Supervisord, Shop], tmp_path: Path) -> None:
    """At every verb, one container for each, all at the same time; and its program at the cleaning
    up after a shim that has died."""
    daemon, shop = impatient
    residue = Residue(daemon, shop.namespace)
    stages = {verb: Stage(shop, f"c-{verb}", FakeShim(tmp_path / verb)) for verb in VERBS}
    mourner = Stage(shop, "c-mourner", FakeShim(tmp_path / "mourner"))
    mourner.run()
    mourner.fake.tell({"Kill": [{"end": "crash"}], "delete": [HANG]})
    with concurrent.futures.ThreadPoolExecutor(len(VERBS) + 1) as pool:
        told = {verb: pool.submit(hang, stage, verb) for verb, stage in stages.items()}
        pool.submit(mourner.wire.kill, mourner.id).exception()
        for verb, stage in stages.items():
            assert told[verb].result(60) is grpc.StatusCode.DEADLINE_EXCEEDED, verb
            assert stage.fake.calls(verb) == [f"{verb} hang"]
    ids = [stage.id for stage in (*stages.values(), mourner)]
    made = shop.wire.tasks_by_id()
    assert {"c-start", "c-Connect"}.isdisjoint(made), "a create that failed leaves no task"
    deadline = time.monotonic() + 60
    while mourner.id in shop.wire.tasks_by_id():
        assert time.monotonic() < deadline, "the task stays"
        time.sleep(0.05)
    assert mourner.fake.calls("delete") == ["delete hang"]
    for pid in (*mourner.fake.hanging(), *stages["start"].fake.hanging()):
        assert not alive(pid), "its program is killed"
    for stage in stages.values():
        stage.fake.tell({})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(stage.remove) for stage in stages.values()]:
            done.result(60)
        residue.expect_none(*ids, seconds=30)
        for done in [pool.submit(stage.live) for stage in (*stages.values(), mourner)]:
            done.result(60)
    residue.expect_none(*ids, seconds=30)
