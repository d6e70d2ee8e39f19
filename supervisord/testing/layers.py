"""What is seen through the mounts: each layer over those below it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument, NotFound
from supervisord.contracts.snapshots import Snapshotter

from .base import LABELS, Base, aside
from .mounting import mounted_aside
from .trees import (
    Change,
    both,
    chown,
    contents,
    device,
    file,
    folder,
    link,
    remove,
    rename,
    symlink,
    xattr,
)


@pytest.mark.asyncio
class Layers(Base):
    async def test_views_are_read_only(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.commit_empty(snapshotter, "one")
        await self.commit_empty(snapshotter, "two", "one")
        for parent in ("", "one", "two"):
            mounts = await snapshotter.view(f"view-{parent}", parent, LABELS)
            async with mounted_aside(mounts, tmp_path / f"mnt-{parent}") as root:
                with pytest.raises(OSError):
                    await aside(file("new", "no"), root)

    async def test_views_show_their_parent_alone(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        one = await self.commit_change(snapshotter, tmp_path, "", file("one"))
        two = await self.commit_change(snapshotter, tmp_path, one, file("two"))
        for parent, names in (("", []), (one, ["one"]), (two, ["one", "two"])):
            mounts = await snapshotter.view(f"view-{parent}", parent, LABELS)
            async with mounted_aside(mounts, tmp_path / "view") as root:
                assert sorted(os.listdir(root)) == names

    async def test_siblings_do_not_meet(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        base = await self.commit_change(snapshotter, tmp_path, "", file("shared", "base"))
        mounts = [await snapshotter.prepare(key, base, LABELS) for key in ("one", "two")]
        async with (
            mounted_aside(mounts[0], tmp_path / "one") as one,
            mounted_aside(mounts[1], tmp_path / "two") as two,
        ):
            await aside(both(file("shared", "one"), file("new", "x")), one)
            assert (two / "shared").read_text() == "base"
            assert not (two / "new").exists()

    async def test_mounts_can_be_made_again(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        mounts = await snapshotter.prepare("key", "", LABELS)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            await aside(file("foo", "foo"), root)
        async with mounted_aside(await snapshotter.mounts("key"), tmp_path / "mnt") as root:
            assert (root / "foo").read_text() == "foo"

    async def test_root_has_mode_755(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        mask = os.umask(0o077)
        try:
            mounts = await snapshotter.prepare("key", "", LABELS)
        finally:
            os.umask(mask)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            assert root.stat().st_mode & 0o7777 == 0o755

    async def test_root_keeps_its_owner(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        mounts = await snapshotter.prepare("key", "", LABELS)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            await aside(chown(".", 12, 34), root)
            root.chmod(0o750)
        await snapshotter.commit("name", "key", LABELS)
        mounts = await snapshotter.prepare("child", "name", LABELS)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            found = root.stat()
            assert (found.st_uid, found.st_gid) == (12, 34)
            if self.keeps_root_mode:
                assert found.st_mode & 0o7777 == 0o750

    async def test_files_are_updated(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        for _ in range(3):  # also within one tick of a clock that is read by the second
            await self.check_layers(
                snapshotter,
                tmp_path,
                both(
                    folder("etc", 0o700),
                    file("etc/hosts", "10.0.0.1"),
                    file("etc/profile", "PATH=/bin"),
                ),
                both(
                    file("etc/hosts", "10.0.0.2"),
                    file("etc/profile", "PATH=/bin", 0o666),
                    folder("root", 0o700),
                    file("root/.bashrc", "PATH=/sbin"),
                ),
            )

    async def test_a_directory_is_replaced(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(folder("lib", 0o700), file("lib/hidden")),
            both(remove("lib"), folder("lib", 0o700), file("lib/not-hidden")),
            file("lib/newfile"),
        )

    async def test_one_kind_replaces_another(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(folder("a"), file("a/x"), file("b"), symlink("a", "c")),
            both(
                *(remove(name) for name in "abc"),
                file("a", "now a file"),
                symlink("a", "b"),
                folder("c"),
                file("c/y"),
            ),
            both(*(remove(name) for name in "abc"), folder("b"), folder("a"), file("c")),
        )

    async def test_owners_change(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        names = ["opt", "opt/a", "opt/a/b"]
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(*(folder(name, 0o700) for name in names), file("opt/a/b/file.txt", "hello")),
            both(*(chown(name, 1, 1) for name in [*names, "opt/a/b/file.txt"])),
        )

    async def test_directory_permissions_survive(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        names = [f"dir{number}" for number in range(1, 6)]
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                *(folder(name, 0o700) for name in names),
                *(chown(name, 1, 1) for name in names if name != "dir4"),
                file("dir4/f1", "..."),
                file("dir5/f1", "..."),
                chown("dir5/f1", 1, 1),
            ),
            both(chown("dir2", 0, 0), remove("dir3"), chown("dir4", 1, 1), chown("dir4/f1", 1, 1)),
            both(
                folder("dir3", 0o700),
                chown("dir3", 1, 1),
                remove("dir5"),
                folder("dir5", 0o700),
                chown("dir5", 1, 1),
            ),
        )

    async def test_files_are_deleted(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)),
            remove("foobar"),
            both(),
        )

    async def test_files_move(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                folder("dir1", 0o700),
                file("dir1/f1", "Hello"),
                folder("dir2", 0o700),
                file("dir2/f2", "..."),
            ),
            both(
                folder("dir3", 0o700),
                file("dir3/f1", "Hello"),
                remove("dir1"),
                link("dir2/f2", "dir3/f2"),
                remove("dir2/f2"),
            ),
        )

    async def test_renames(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        changes: list[Change] = [
            file("some/f1-overwrite", "new content 1"),
            rename("some/f1-overwrite", "some/f1"),
            rename("some/f2", "some/f3"),
        ]
        if self.renames_lower_directories:
            changes.insert(0, rename("dir1", "dir2"))
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                folder("dir1", 0o700),
                folder("some", 0o700),
                file("some/f1", "was here first!"),
                file("some/f2", "nothing interesting"),
            ),
            both(*changes),
        )

    async def test_all_kinds_of_files(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                file("suid", "x", 0o4755),
                folder("sticky", 0o1777),
                symlink("../nowhere", "sticky/dangling"),
                device("null", stat.S_IFCHR, 1, 3),
                device("block", stat.S_IFBLK, 7, 0),
                device("fifo", stat.S_IFIFO, 0, 0),
                _listen("socket"),
                xattr("suid", "user.note", b"\0\xff"),
                chown("sticky/dangling", 3_000_000, 4_000_000),
                file("sparse"),
                _grow("sparse", 1 << 24),
            ),
            both(remove("null"), remove("socket"), xattr("suid", "user.note", b"changed")),
        )

    async def test_hard_links(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(file("one", "1"), link("one", "two"), folder("d"), link("one", "d/three")),
            remove("one"),
        )

    async def test_many_layers(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        flat = tmp_path / "flat"
        flat.mkdir()
        parent = ""
        for number in range(self.many_layers):
            change = both(
                *(
                    [folder("add"), folder("only")]
                    if number == 0
                    else [remove("only"), folder("only")]
                ),
                file("overwrite", f"{number} was here\n"),
                file(f"add/file-{number}", "same\n"),
                file(f"only/file-{number}", "only me\n"),
            )
            parent = await self.commit_change(snapshotter, tmp_path, parent, change)
            await aside(change, flat)
        for make, key in ((snapshotter.view, "view"), (snapshotter.prepare, "active")):
            async with mounted_aside(await make(key, parent, LABELS), tmp_path / key) as root:
                assert await aside(contents, root) == await aside(contents, flat)

    async def test_a_parent_is_given_at_commit(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        """What was unpacked beside its parents gets them; needs the capability ``rebase``."""
        lower = both(folder("d", 0o750), file("d/lower", "lower"), file("same", "lower"))
        base = await self.commit_change(snapshotter, tmp_path, "", lower)
        mounts = await snapshotter.prepare("key", "", LABELS)
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            await aside(both(file("upper", "upper"), file("same", "upper")), root)
        if not self.rebases:
            return
        with pytest.raises(NotFound):
            await snapshotter.commit("name", "key", LABELS, "nowhere")
        await snapshotter.prepare("active", "", LABELS)
        with pytest.raises((FailedPrecondition, InvalidArgument)):
            await snapshotter.commit("name", "key", LABELS, "active")
        await snapshotter.commit("name", "key", LABELS, base)
        assert (await snapshotter.stat("name")).parent == base
        with pytest.raises(FailedPrecondition):
            await snapshotter.remove(base)
        async with mounted_aside(
            await snapshotter.view("view", "name", LABELS), tmp_path / "v"
        ) as root:
            assert (root / "d/lower").read_text() == "lower"
            assert (root / "same").read_text() == "upper"
            assert (root / "upper").exists()


def _listen(path: str) -> Change:
    """A unix socket, as a daemon in a container leaves it."""

    def apply(root: Path) -> None:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"/proc/self/fd/{folder}/{path}")
        finally:
            os.close(folder)

    return apply


def _grow(path: str, size: int) -> Change:
    """A file that is one hole."""

    def apply(root: Path) -> None:
        os.truncate(root / path, size)

    return apply
