"""Programs that judge images: what they are told, and what their answers do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord.contracts.errors import FailedPrecondition, PermissionDenied
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.verifying import Programs, verified

_TARGET = Descriptor(media.MANIFEST, "sha256:" + "1" * 64, 7)
Add = Callable[[str, str], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "bin"
    found.mkdir()
    return found


@pytest.fixture
def add(folder: Path) -> Add:
    def adding(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return adding


def _programs(folder: Path, most: int = 10, seconds: float = 5.0) -> Programs:
    return Programs(str(folder), most, seconds)


async def test_what_they_are_told(folder: Path, add: Add, tmp_path: Path) -> None:
    add("one", f'printf "%s\\n" "$@" > {tmp_path}/told; cat > {tmp_path}/in; echo fine')
    assert await _programs(folder).verify("h.io/a:1", _TARGET) == "one: fine"
    told = (tmp_path / "told").read_text().split("\n")[:-1]
    kind = "application/vnd.oci.descriptor.v1+json"
    assert told == ["-name", "h.io/a:1", "-digest", _TARGET.digest, "-stdin-media-type", kind]
    assert json.loads((tmp_path / "in").read_text()) == {
        "mediaType": media.MANIFEST,
        "digest": _TARGET.digest,
        "size": 7,
    }


async def test_all_have_to_allow_it(folder: Path, add: Add, tmp_path: Path) -> None:
    add("a", "echo because")
    add("b", "echo not signed; exit 3")
    add("c", f"touch {tmp_path}/called")
    with pytest.raises(PermissionDenied, match=r"^b: exit status 3: not signed$"):
        await _programs(folder).verify("n", _TARGET)
    assert not (tmp_path / "called").exists()
    with pytest.raises(PermissionDenied, match=r"image verifier bindir refuses n .*not signed"):
        await verified({"bindir": _programs(folder)}, "n", _TARGET)


@pytest.mark.parametrize(("most", "allowed"), [(-1, False), (0, True), (1, True), (2, False)])
async def test_no_more_than_said(folder: Path, add: Add, most: int, allowed: bool) -> None:
    add("a", "exit 0")
    add("b", "exit 1")
    if allowed:
        await _programs(folder, most).verify("n", _TARGET)
    else:
        with pytest.raises(PermissionDenied):
            await _programs(folder, most).verify("n", _TARGET)


async def test_nobody_is_asked(folder: Path) -> None:
    assert await _programs(folder).verify("n", _TARGET) == ""
    assert await _programs(folder / "absent").verify("n", _TARGET) == f"there is no {folder}/absent"
    (folder / "file").touch()
    with pytest.raises(FailedPrecondition, match="Not a directory"):
        await _programs(folder / "file").verify("n", _TARGET)


async def test_what_cannot_be_run(folder: Path, add: Add) -> None:
    (folder / "text").write_text("not a program")
    with pytest.raises(FailedPrecondition, match="text: Permission denied"):
        await _programs(folder).verify("n", _TARGET)
    (folder / "text").unlink()
    (folder / "folder").mkdir()
    with pytest.raises(FailedPrecondition, match=r"bindir did not judge n .*folder: Permission"):
        await verified({"bindir": _programs(folder)}, "n", _TARGET)


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & exit 0", "sleep 60 & sleep 60"])
async def test_one_that_does_not_end(folder: Path, add: Add, script: str) -> None:
    """It is ended with all that it has started, also what holds its outputs open alone."""
    add("slow", script)
    begun = time.monotonic()
    with pytest.raises(FailedPrecondition, match=r"slow: no answer in 0\.3 s"):
        await _programs(folder, seconds=0.3).verify("n", _TARGET)
    assert time.monotonic() - begun < 5  # the room fails a test that leaves a process


async def test_one_that_dies(folder: Path, add: Add) -> None:
    add("dies", "kill -9 $$")
    with pytest.raises(FailedPrecondition, match="dies: ended by signal 9"):
        await _programs(folder).verify("n", _TARGET)


@pytest.mark.parametrize("stream", [1, 2])
async def test_one_that_says_much(folder: Path, add: Add, stream: int) -> None:
    code = f"import os\nfor _ in range(64): os.write({stream}, b'x' * 65536)"
    add("loud", f'exec {sys.executable} -c "{code}"')
    said = await _programs(folder).verify("n", _TARGET)
    assert said == ("loud: " + ("x" * (32 << 10) + " (there was more)") * (stream == 1))


async def test_one_that_does_not_listen(folder: Path, add: Add) -> None:
    large = Descriptor(media.MANIFEST, _TARGET.digest, 7, annotations={"a": "b" * 200_000})
    add("deaf", "exec 0<&-; echo yes")
    assert await _programs(folder).verify("n", large) == "deaf: yes"
