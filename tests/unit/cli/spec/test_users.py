"""Who a container runs as."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.cli.errors import CliError
from supervisord.cli.spec.users import Users, with_groups

ACCOUNTS = """\
root:x:0:0::/:/bin/sh
# comment:x:9:9
web:x:33:44:::
broken
odd:x:a:b:::
twin:x:33:55:::
"""
GROUP = "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web\nweb:x:44:web\nbad:x:y:web\nlone:x:60\n"
FILES = {"/etc/passwd": ACCOUNTS, "/etc/group": GROUP}
USERS = Users(FILES.get)
NOBODY = Users(lambda path: None)


@pytest.mark.parametrize(
    ("text", "uid", "gid"),
    [
        ("web", 33, 44),
        ("33", 33, 44),
        ("1000", 1000, 0),
        ("web:staff", 33, 50),
        ("web:7", 33, 7),
        ("5:6", 5, 6),
        ("5:wheel", 5, 10),
        ("root", 0, 0),
        ("2147483647", 2147483647, 0),
    ],
)
def test_names_and_numbers(text: str, uid: int, gid: int) -> None:
    assert USERS.resolve(text) == {"uid": uid, "gid": gid}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "user 'nobody' is not in the image's /etc/passwd"),
        ("web:none", "group 'none' is not in the image's /etc/group"),
        ("2147483648", "uid is out of range"),
        ("0:2147483648", "gid is out of range"),
        ("", "is not of the form"),
        (":", "is not of the form"),
        ("a:", "is not of the form"),
        ("a:b:c", "is not of the form"),
        ("-1", "user '-1' is not in"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(CliError, match=message):
        USERS.resolve(text)


def test_an_image_without_passwd_knows_numbers_only() -> None:
    assert NOBODY.resolve("7") == {"uid": 7, "gid": 0}
    assert NOBODY.supplementary("root") == []
    with pytest.raises(CliError):
        NOBODY.resolve("root")


def test_supplementary_groups() -> None:
    assert USERS.supplementary("web") == [10, 50]
    assert USERS.supplementary("33") == [10, 50]
    assert USERS.supplementary("root") == [10]
    assert USERS.supplementary("12345") == []


def test_the_own_group_comes_first_and_once() -> None:
    assert with_groups({"uid": 1, "gid": 5}, [10, 5, 10]) == {
        "uid": 1,
        "gid": 5,
        "additionalGids": [5, 10],
    }


@given(st.text(max_size=60), st.text(max_size=60), st.text(min_size=1, max_size=9))
def test_any_files_and_any_name(passwd: str, group: str, name: str) -> None:
    users = Users({"/etc/passwd": passwd, "/etc/group": group}.get)
    with contextlib.suppress(CliError):
        users.resolve(name)
    users.supplementary(name)
