"""User names and ids of an image: ``user[:group]`` against its /etc/passwd and /etc/group.

The rules are containerd's clients': a number that passwd does not know is used as it is, with
group 0; a name must exist; supplementary groups come from /etc/group; the primary group is always
among the additional ones, first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import CliError

MAX_ID = (1 << 31) - 1

ReadFile = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


class Users:
    """The accounts of one root filesystem, read when they are first needed."""

    def __init__(self, read: ReadFile) -> None:
        self._read = read

    def accounts(self) -> Iterator[Account]:
        """Every well-formed line of /etc/passwd."""
        for fields in self._lines("/etc/passwd", 4):
            if fields[2].isdecimal() and fields[3].isdecimal():
                yield Account(fields[0], int(fields[2]), int(fields[3]))

    def groups(self) -> Iterator[Group]:
        """Every well-formed line of /etc/group."""
        for fields in self._lines("/etc/group", 3):
            if fields[2].isdecimal():
                members = fields[3].split(",") if len(fields) > 3 else []
                yield Group(fields[0], int(fields[2]), tuple(filter(None, members)))

    def resolve(self, text: str) -> dict[str, Any]:
        """The ``user`` of an OCI process for ``name``, ``uid``, ``name:group`` or ``uid:gid``.

        Raises CliError for an unknown name or an id out of range."""
        user, colon, group = text.partition(":")
        if not user or (colon and not group) or ":" in group:
            raise CliError(f"user {text!r} is not of the form name, uid, name:group or uid:gid")
        if user.isdecimal():
            uid, gid = self._by_id(_number(user, text, "uid"), want_group=not colon)
        else:
            account = next((item for item in self.accounts() if item.name == user), None)
            if account is None:
                raise CliError(f"user {user!r} is not in the image's /etc/passwd")
            uid, gid = account.uid, account.gid
        if colon:
            gid = self._group(group, text)
        return {"uid": uid, "gid": gid}

    def supplementary(self, user: str) -> list[int]:
        """The groups whose members include the user (a name, or a uid in digits)."""
        name = user
        if user.isdecimal():
            uid = int(user)
            found = next((item.name for item in self.accounts() if item.uid == uid), None)
            if found is None:
                return []
            name = found
        return [
            group.gid for group in self.groups() if group.name != name and name in group.members
        ]

    def _by_id(self, uid: int, *, want_group: bool) -> tuple[int, int]:
        if want_group:
            for account in self.accounts():
                if account.uid == uid:
                    return uid, account.gid
        return uid, 0

    def _group(self, group: str, text: str) -> int:
        if group.isdecimal():
            return _number(group, text, "gid")
        for item in self.groups():
            if item.name == group:
                return item.gid
        raise CliError(f"group {group!r} is not in the image's /etc/group")

    def _lines(self, path: str, fields: int) -> Iterator[list[str]]:
        for line in (self._read(path) or "").splitlines():
            parts = line.strip().split(":")
            if len(parts) >= fields and not line.startswith("#"):
                yield parts


def with_groups(user: dict[str, Any], gids: list[int]) -> dict[str, Any]:
    """The user with its additional groups: its own first, each once."""
    return {**user, "additionalGids": list(dict.fromkeys([user["gid"], *gids]))}


def _number(text: str, whole: str, kind: str) -> int:
    number = int(text)
    if number > MAX_ID:
        raise CliError(f"user {whole!r}: the {kind} is out of range (0 to {MAX_ID})")
    return number
