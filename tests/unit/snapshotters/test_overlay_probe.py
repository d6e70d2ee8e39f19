"""What overlayfs needs under a root, as the snapshotter finds out when it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotters.overlayfs import OverlaySnapshotter, Settings, probe
from supervisord.contracts.errors import FailedPrecondition
from supervisord.linux.mount import unmount_all
from tests.disks import command, disk

on_disks = pytest.mark.blocks("it formats and mounts a file system")


@pytest.fixture
def parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "parameters"
    folder.mkdir()
    monkeypatch.setattr(probe, "_PARAMETERS", folder)
    return folder


def test_options_by_what_the_kernel_says(
    parameters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path)
    assert probe.overlay_options(root, ()) == []
    (parameters / "index").write_text("N\n")
    (parameters / "metacopy").write_text("N\n")
    assert probe.overlay_options(root, ()) == ["index=off"]
    (parameters / "metacopy").write_text("Y\n")
    assert probe.overlay_options(root, ()) == ["index=off", "metacopy=off"]
    assert probe.overlay_options(root, ("index=on", "metacopy=on")) == []
    monkeypatch.setattr(probe, "in_user_namespace", lambda: True)
    assert probe.overlay_options(root, ("index=off",)) == ["userxattr", "metacopy=off"]
    assert probe.overlay_options(root, ("index=off", "userxattr")) == ["metacopy=off"]
    monkeypatch.setattr(probe, "kernel", lambda: (5, 10))
    assert not probe.needs_userxattr(root)


@on_disks
def test_user_xattrs_are_not_for_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "in_user_namespace", lambda: True)
    assert probe.needs_userxattr(str(tmp_path))
    command(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
    try:
        assert probe.filesystem(str(tmp_path)) == "tmpfs"
        assert not probe.needs_userxattr(str(tmp_path))
    finally:
        unmount_all(str(tmp_path))


@on_disks
async def test_folders_that_tell_no_types(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ext4", "-O", "^filetype", size=16 << 20) as volume:
        with pytest.raises(FailedPrecondition, match="does not support d_type"):
            await OverlaySnapshotter.open(volume / "root")
        assert list((volume / "root" / "snapshots").iterdir()) == []


@pytest.fixture
def stacked(tmp_path: Path) -> Iterator[Path]:
    """A folder on overlayfs."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    command(["mount", "-t", "overlay", "-o", options, "overlay", str(tmp_path / "merged")])
    yield tmp_path / "merged"
    unmount_all(str(tmp_path / "merged"))


@on_disks
async def test_a_root_on_overlayfs_is_told(stacked: Path, caplog: pytest.LogCaptureFixture) -> None:
    overlay = await OverlaySnapshotter.open(stacked / "root")
    await overlay.close()
    assert f"{stacked}/root is on overlayfs itself" in caplog.text


async def test_a_disk_that_counts_no_projects_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(project_quota=1 << 20))
    await overlay.prepare("a", "", {})
    assert (await overlay.usage("a")).inodes == 1
    await overlay.close()
    assert "counts no projects" in caplog.text
