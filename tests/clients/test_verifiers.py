"""Image verifiers of the configuration stand before every pull of the Transfer service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2
from tests.clients.transferring import Mover
from tests.conformance import sweep
from tests.conformance.daemons import running
from tests.conformance.ocitar import Image, Member, build
from tests.conformance.wire import Wire
from tests.registries.server import Server, fill, needed, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

_TABLE = '[plugins."io.containerd.image-verifier.v1.bindir"]\n'


@pytest.fixture
def image() -> Image:
    return build([[Member("a", b"verified")]])


@pytest.fixture
def registry(image: Image, tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path) as found:
        fill(found, image.write(tmp_path / "image.tar", "x:1"), "app:1")
        fill(found, tmp_path / "image.tar", "app:2")
        yield found


def test_a_pull_is_judged_first(registry: Server, image: Image, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    judge = programs / "judge"
    judge.write_text('#!/bin/sh\necho "about $2"\ncase $2 in *:2) exit 7;; esac\n')
    judge.chmod(0o755)
    more = f'{_TABLE}bin_dir = "{programs}"\nper_verifier_timeout = "5s"\n'
    with running("supervisord", more) as daemon:
        wire = Wire(daemon.address, "judged", ours=True)
        try:
            refused = f"{registry.address}/app:2"
            says = f"image verifier bindir refuses {refused} ({image.manifest})"
            with wire.refused(grpc.StatusCode.PERMISSION_DENIED, says, f"7: about {refused}"):
                Mover(wire).pull(refused)
            pages = wire.content.List(content_pb2.ListContentRequest())
            assert not [info for page in pages for info in page.info]
            assert not registry.requests('"GET /v2/app/')  # but for what a tag is
            Mover(wire).pull(f"{registry.address}/app:1")
            judge.chmod(0o644)
            with wire.refused(grpc.StatusCode.FAILED_PRECONDITION, "judge: Permission denied"):
                Mover(wire).pull(f"{registry.address}/app:1", name="again")
        finally:
            sweep.namespace(wire)
            wire.close()


def test_a_mistake_in_the_configuration_is_no_way_around() -> None:
    wrong = f'{_TABLE}per_verifier_timeout = "soon"\n'
    with (
        pytest.raises(AssertionError, match="per_verifier_timeout: 'soon' is no duration"),
        running("supervisord", wrong),
    ):
        pass
