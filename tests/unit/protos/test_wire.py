"""The wire does not drift, and the stubs are what the sources say."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from protos import generate
from tests.unit.protos import wire


def test_the_wire_is_what_peers_rely_on() -> None:
    now, golden = wire.lines(), wire.GOLDEN.read_text().splitlines()
    gone = [f"- {fact}" for fact in sorted(set(golden) - set(now))]
    new = [f"+ {fact}" for fact in sorted(set(now) - set(golden))]
    assert now == golden, "\n".join(["the wire has changed:", *gone, *new])


def test_stubs_are_current() -> None:
    assert generate.differing() == []


@pytest.mark.parametrize(
    "name",
    sorted(
        ".".join(("protos", *path.with_suffix("").parts))
        for path in generate.generated()
        if path.suffix == ".py"
    ),
)
def test_every_stub_imports(name: str) -> None:
    importlib.import_module(name)


def test_no_stub_escapes_the_package() -> None:
    packages = {path.relative_to(generate.ROOT).parts[0] for path in generate.sources()}
    for name in generate.generated():
        for line in (generate.ROOT / name).read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in packages, f"{name}: {line}"


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "demo/v1/demo.proto"
    source.parent.mkdir(parents=True)
    source.write_text('syntax = "proto3";\npackage demo.v1;\nmessage A { string a = 1; }\n')
    assert not generate.is_current(tmp_path)
    assert generate.generate(tmp_path) == 1
    assert generate.is_current(tmp_path)
    assert generate.differing(tmp_path) == []

    source.write_text(source.read_text().replace("string a", "string b"))
    assert not generate.is_current(tmp_path)
    assert Path("demo/v1/demo_pb2.py") in generate.differing(tmp_path)

    source.rename(source.with_name("other.proto"))
    generate.generate(tmp_path)
    assert {path.name.split("_")[0] for path in generate.generated(tmp_path)} == {"other"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".stubs", "demo"]


def test_a_source_that_does_not_compile_keeps_the_stubs(tmp_path: Path) -> None:
    source = tmp_path / "demo/v1/demo.proto"
    source.parent.mkdir(parents=True)
    source.write_text('syntax = "proto3";\npackage demo.v1;\nmessage A { string a = 1; }\n')
    generate.generate(tmp_path)
    before = generate.generated(tmp_path)
    source.write_text("message")
    with pytest.raises(RuntimeError, match="do not compile"):
        generate.generate(tmp_path)
    assert generate.generated(tmp_path) == before
    shutil.rmtree(source.parent)
