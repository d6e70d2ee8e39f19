"""Mount options taken apart."""

from __future__ import annotations

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.linux import mount_options as opts


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([], 0, ()),
        (["ro"], opts.RDONLY, ()),
        (["ro", "rw"], 0, ()),
        (["rbind", "ro"], opts.BIND | opts.REC | opts.RDONLY, ()),
        (["nosuid", "noexec", "nodev"], opts.NOSUID | opts.NOEXEC | opts.NODEV, ()),
        (["nosuid", "suid", "defaults"], 0, ()),
        (["noatime", "mode=755", "size=64k"], opts.NOATIME, ("mode=755", "size=64k")),
        (["rslave", "bind"], opts.SLAVE | opts.REC | opts.BIND, ()),
        (["lowerdir=/a:/b", "index=off"], 0, ("lowerdir=/a:/b", "index=off")),
    ],
)
def test_flags_and_data(options: list[str], flags: int, data: tuple[str, ...]) -> None:
    assert opts.parse(options) == opts.Options(flags, data)


def test_files_by_loop_devices() -> None:
    found = opts.parse(["ro", "loop", "direct-io", "noload"])
    assert found == opts.Options(opts.RDONLY, ("noload",), loop=True, direct=True)
    assert opts.parse(["direct-io"]) == opts.Options(0, ("direct-io",))


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("X-containerd.mkfs", InvalidArgument),
        ("mode=\0", InvalidArgument),
    ],
)
def test_refused(option: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="mount: "):
        opts.parse([option])


def test_lowerdir_splits_at_colons_that_are_not_escaped() -> None:
    assert opts.split_lowerdir(r"/a\:b:/c\\d") == ["/a:b", "/c\\d"]
    assert opts.escape_colon("/a:b\\") == r"/a\:b\\"


def test_the_common_folder() -> None:
    assert opts.common_folder(["/s/1/fs", "/s/22/fs"]) == "/s"
    assert opts.common_folder(["/s/1", "/s"]) == ""
    assert opts.common_folder(["/a", "/b"]) == ""
    assert opts.common_folder(["/x/s", "/x/s/1"]) == "/x"
    assert opts.common_folder(["relative", "/b"]) == ""
