"""Reading files of a snapshot's layers, as the kernel's overlay would show them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from protos.containerd.types.types_pb2 import Mount
from supervisord.cli.errors import CliError
from supervisord.cli.spec.rootfs import MAX_SIZE, layers_of, read_text


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, topmost first."""
    found = [tmp_path / name for name in ("top", "middle", "bottom")]
    for layer in found:
        (layer / "etc").mkdir(parents=True)
    return found


def text(layers: list[Path], path: str = "/etc/passwd") -> str | None:
    return read_text([str(layer) for layer in layers], path)


def test_the_topmost_layer_wins(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("bottom")
    assert text(layers) == "bottom"
    (layers[1] / "etc/passwd").write_text("middle")
    assert text(layers) == "middle"
    assert text(layers, "/etc/group") is None


def test_a_whiteout_hides(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("bottom")
    os.mknod(layers[1] / "etc/passwd", stat.S_IFCHR, 0)
    assert text(layers) is None


def test_a_whiteout_of_the_folder_hides(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("bottom")
    (layers[1] / "etc").rmdir()
    (layers[0] / "etc").rmdir()
    os.mknod(layers[1] / "etc", stat.S_IFCHR, 0)
    assert text(layers) is None


def test_an_opaque_folder_hides(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("bottom")
    try:
        os.setxattr(layers[0] / "etc", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("no trusted attributes on this filesystem")
    assert text(layers) is None


def test_symlinks_stay_inside(layers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    for target in ("/secret", "../../../../secret", f"{tmp_path}/secret"):
        link = layers[0] / "etc/passwd"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert text(layers) is None
    (layers[2] / "usr").mkdir()
    (layers[2] / "usr/passwd").write_text("inside")
    link.unlink()
    link.symlink_to("/usr/passwd")
    assert text(layers) == "inside"
    link.unlink()
    link.symlink_to("../../../usr/passwd")
    assert text(layers) == "inside"


def test_a_linked_folder(layers: list[Path]) -> None:
    (layers[0] / "etc").rmdir()
    (layers[1] / "etc").rmdir()
    (layers[0] / "etc").symlink_to("real/deep/..")
    (layers[2] / "real/deep").mkdir(parents=True)
    (layers[2] / "real/passwd").write_text("found")
    assert text(layers) == "found"


def test_a_loop_is_refused(layers: list[Path]) -> None:
    (layers[0] / "etc/passwd").symlink_to("/etc/group")
    (layers[0] / "etc/group").symlink_to("/etc/passwd")
    with pytest.raises(CliError, match="too many symlinks"):
        text(layers)


def test_what_is_no_file_is_none(layers: list[Path]) -> None:
    os.mkfifo(layers[0] / "etc/passwd")
    assert text(layers) is None
    (layers[0] / "etc/group").mkdir()
    assert text(layers, "/etc/group") is None


def test_a_huge_file_is_refused(layers: list[Path]) -> None:
    with (layers[0] / "etc/passwd").open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    with pytest.raises(CliError, match="larger than 4 MiB"):
        text(layers)


def test_layers_of_mounts() -> None:
    bind = Mount(type="bind", source="/a", options=["rbind"])
    overlay = Mount(
        type="overlay", source="overlay", options=["upperdir=/u", "workdir=/w", "lowerdir=/x:/y"]
    )
    view = Mount(type="overlay", source="overlay", options=["lowerdir=/x:/y"])
    assert layers_of([bind]) == ["/a"]
    assert layers_of([overlay]) == ["/u", "/x", "/y"]
    assert layers_of([view]) == ["/x", "/y"]
    assert layers_of([Mount(type="btrfs", source="/dev/x")]) is None
    assert layers_of([bind, overlay]) is None


def test_it_agrees_with_the_kernel(layers: list[Path], tmp_path: Path) -> None:
    """The same files through a real overlay mount."""
    (layers[2] / "etc/passwd").write_text("bottom")
    (layers[1] / "etc/group").write_text("middle")
    (layers[2] / "etc/group").write_text("hidden")
    os.mknod(layers[0] / "etc/passwd", stat.S_IFCHR, 0)
    (layers[0] / "etc/link").symlink_to("/etc/group")
    point = tmp_path / "merged"
    point.mkdir()
    options = "lowerdir=" + ":".join(map(str, layers))
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(point)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no overlay mounts here")
    try:
        names = set(os.listdir(point / "etc"))
        seen = {name for name in ("passwd", "group", "link") if text(layers, f"/etc/{name}")}
        assert seen == names
        assert text(layers, "/etc/group") == (point / "etc/group").read_text()
    finally:
        subprocess.run(["umount", str(point)], check=True)
