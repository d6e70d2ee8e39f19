"""What the manager makes, and how places in mounts are filled in."""

from __future__ import annotations

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.mounts import ActiveMount
from supervisord.contracts.snapshots import Mount
from supervisord.mounting.plan import plan
from supervisord.mounting.template import filled

HANDLERS = ("loop", "erofs")


@pytest.mark.parametrize(
    ("types", "allowed", "made"),
    [
        ("overlay", "", None),
        ("bind ext4", "", None),
        ("unknown/overlay", "", None),
        ("erofs", "", 1),
        ("erofs", "erofs", None),
        ("erofs bind", "", 1),
        ("bind format/overlay", "", 1),
        ("erofs erofs format/mkdir/overlay", "", 2),
        ("erofs erofs format/mkdir/overlay", "erofs", 2),
        ("erofs format/overlay", "erofs format/*", None),
        ("erofs format/overlay", "erofs format/overlay", None),
        ("mkfs/ext4", "", 0),
        ("mkfs/ext4 format/mkdir/bind", "", 1),
        ("mkfs/loop ext4 bind", "", 1),
        ("ext4 format/erofs", "", 2),
    ],
)
def test_what_is_made(types: str, allowed: str, made: int | None) -> None:
    mounts = [Mount(type, "source") for type in types.split()]
    found = plan(mounts, HANDLERS, allowed=allowed.split())
    assert (found.made if found else None) == made


def test_all_is_made_for_a_while() -> None:
    found = plan([Mount("bind", "/"), Mount("overlay", "o")], HANDLERS, temporary=True)
    assert found is not None
    assert found.made == 2


def test_prefixes_in_their_order() -> None:
    found = plan([Mount("mkdir/format/erofs", "x")], HANDLERS)
    assert found is not None
    (step,) = found.steps
    assert (step.prefixes, step.type, step.handler) == (("mkdir", "format"), "erofs", "erofs")


ACTIVE = [
    ActiveMount(Mount("erofs", f"/source{at}", (), f"/target{at}"), 1, f"/t/{at}")
    for at in range(3)
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{ mount 0 }}", "/t/0"),
        ("{{mount 2}}/upper", "/t/2/upper"),
        ("a={{ source 1 }},b={{ target 1 }}", "a=/source1,b=/target1"),
        ("lowerdir={{ overlay 0 2 }}", "lowerdir=/t/0:/t/1:/t/2"),
        ("{{ overlay 2 1 }}", "/t/2:/t/1"),
        ("{{ overlay 1 1 }}", "/t/1"),
        ("x {{- mount 0 -}} y", "x/t/0y"),
    ],
)
def test_places(text: str, expected: str) -> None:
    assert filled(text, ACTIVE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ mount 3 }}",
        "{{ mount -1 }}",
        "{{ overlay 0 3 }}",
        "{{ mount }}",
        "{{ mount 0 1 }}",
        "{{ mount x }}",
        "{{ mount ٣ }}",
        "{{ printf 1 }}",
        "{{ }}",
        "{{ mount 0",
    ],
)
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="mount: "):
        filled(text, ACTIVE)
