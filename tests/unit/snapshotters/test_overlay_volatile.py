"""Snapshots that need not survive the machine's crash: what is asked for, and what is safe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotters.overlayfs import OverlaySnapshotter, Settings, volatile
from supervisord.contracts.errors import FailedPrecondition, InvalidArgument
from supervisord.contracts.snapshots import Info
from supervisord.linux.mount import mount_all, unmount_all
from supervisord.testing.mounting import mounted

LABELS = {volatile.LABEL: "true"}
on_mounts = pytest.mark.blocks("it mounts, and writes to the mounts")


@pytest.fixture
async def overlay(tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
    if not volatile.known():
        pytest.skip("this kernel has no volatile mounts")
    opened = await OverlaySnapshotter.open(tmp_path / "root")
    await layers(opened)
    yield opened
    await opened.close()


async def layers(overlay: OverlaySnapshotter) -> None:
    parent = ""
    for name in ("one", "two"):
        await overlay.prepare("key", parent, {})
        await overlay.commit(name, "key", {})
        parent = name


async def test_by_label_or_by_option(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    (mount,) = await overlay.prepare("a", "two", LABELS)
    assert mount.options[-1] == "volatile"
    (mount,) = await overlay.prepare("b", "two", {})
    assert "volatile" not in mount.options
    (mount,) = await overlay.prepare("c", "", LABELS)
    assert mount.options == ("rw", "rbind"), "a bind mount is none of overlayfs"
    for option in ("volatile", "fsync=volatile"):
        settings = Settings(mount_options=(option, "xino=off"))
        other = await OverlaySnapshotter.open(tmp_path / option, settings)
        await layers(other)
        for labels in ({}, LABELS):
            (mount,) = await other.prepare(f"a{len(labels)}", "two", labels)
            assert mount.options[3:] == (option, "xino=off", "index=off")
        (mount,) = await other.view("v", "two", {})
        assert mount.options[1:] == ("xino=off", "index=off"), "a view writes nothing"
        await other.close()


async def test_a_kernel_that_knows_none(
    overlay: OverlaySnapshotter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(volatile, "kernel", lambda: (5, 9))
    other = await OverlaySnapshotter.open(tmp_path / "other")
    await layers(other)
    (mount,) = await other.prepare("a", "two", LABELS)
    assert "volatile" not in mount.options
    await other.close()


@on_mounts
async def test_it_is_mounted_again(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    mounts = await overlay.prepare("a", "two", LABELS)
    with mounted(mounts, tmp_path / "mnt") as root:
        (root / "file").write_text("kept")
    (tmp_path / "mnt2").mkdir()
    with pytest.raises(InvalidArgument):  # the kernel's own refusal
        mount_all(mounts, str(tmp_path / "mnt2"))
    with mounted(await overlay.mounts("a"), tmp_path / "mnt") as root:
        assert (root / "file").read_text() == "kept"
    await overlay.commit("name", "a", {})
    with mounted(await overlay.view("v", "name", {}), tmp_path / "mnt") as root:
        assert (root / "file").read_text() == "kept"


@on_mounts
async def test_it_does_not_outlive_the_machine(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    mounts = await overlay.prepare("a", "two", LABELS)
    with mounted(mounts, tmp_path / "mnt") as root:
        (root / "file").write_text("perhaps")
    boot = overlay.root / "snapshots" / "3" / "boot"
    for earlier in ("another run\n", ""):
        boot.write_text(earlier)
        with pytest.raises(FailedPrecondition, match="snapshot 'a': volatile"):
            await overlay.mounts("a")
    boot.unlink()
    with pytest.raises(FailedPrecondition):
        await overlay.mounts("a")
    await overlay.remove("a")


@on_mounts
async def test_it_is_volatile_no_more(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    with mounted(await overlay.prepare("a", "two", LABELS), tmp_path / "mnt") as root:
        (root / "file").touch()
    await overlay.update(Info("a"), ())
    mounts = await overlay.mounts("a")
    assert "volatile" not in mounts[0].options
    with mounted(mounts, tmp_path / "mnt") as root:
        assert (root / "file").exists()


async def test_one_that_was_never_written_does(overlay: OverlaySnapshotter) -> None:
    await overlay.prepare("a", "two", LABELS)
    boot = overlay.root / "snapshots" / "3" / "boot"
    this = boot.read_text()
    boot.write_text("another run\n")
    assert "volatile" in (await overlay.mounts("a"))[0].options
    assert boot.read_text() == this


@on_mounts
async def test_mounts_are_asked_for_while_it_is_mounted(
    overlay: OverlaySnapshotter, tmp_path: Path
) -> None:
    mounts = await overlay.prepare("a", "two", LABELS)
    (tmp_path / "mnt").mkdir()
    mount_all(mounts, str(tmp_path / "mnt"))
    (tmp_path / "mnt" / "file").touch()
    assert await overlay.mounts("a") == mounts
    (tmp_path / "mnt" / "more").touch()
    unmount_all(str(tmp_path / "mnt"))
