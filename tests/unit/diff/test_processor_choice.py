"""Which stream processors a media type goes through, and how they are configured."""

from __future__ import annotations

import pytest

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument
from supervisord.diff import configured
from supervisord.diff.media import OCI
from supervisord.diff.processors import BUILT_IN, Processor, chain


def program(accepts: str, returns: str) -> Processor:
    return Processor("test", (accepts,), returns, "program")


def test_circles() -> None:
    there, back = program("a/a", "b/b"), program("b/b", "a/a")
    with pytest.raises(FailedPrecondition, match="more than 8 in a row: test to test"):
        chain((there, back), "a/a")
    assert chain((there, back), "c/c") == ([], "c/c")
    assert chain((program(OCI, OCI),), OCI)[1] == OCI


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x", "stream_processors.id: must be a table"),
        ({"pathh": "x"}, "stream_processors.id: unknown key pathh"),
        ({"accepts": "x"}, "stream_processors.id.accepts: must be a list of strings"),
        ({"accepts": [1]}, "stream_processors.id.accepts: must be a list of strings"),
        ({"path": 1}, "stream_processors.id.path: must be a string"),
        ({"accepts": ["a/b"], "path": "p"}, "stream_processors.id.returns: must not be empty"),
        (
            {"accepts": ["a/b"], "returns": "c/d", "path": "p", "env": ["X"]},
            "stream_processors.id.env: must be NAME=VALUE: 'X'",
        ),
    ],
)
def test_mistakes_in_the_configuration(entry: object, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        configured({"id": entry})
    assert message in caught.value.message


def test_a_built_in_one_can_be_replaced() -> None:
    id = BUILT_IN[0].id
    found = configured({id: {"accepts": ["a/b"], "returns": OCI, "path": "p"}})
    assert [each.id for each in found] == [id, BUILT_IN[1].id]
    assert found[0].path == "p"
