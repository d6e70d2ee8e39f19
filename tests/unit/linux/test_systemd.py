"""Where systemd puts groups, against what it has been seen to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.linux import cgroups, systemd


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("system.slice:docker:4f1d", "/system.slice/docker-4f1d.scope"),
        (
            "kubepods-besteffort-pod8a.slice:cri-containerd:c1",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8a.slice"
            "/cri-containerd-c1.scope",
        ),
        ("user.slice::bare", "/user.slice/bare.scope"),
        (":runc:one", "/system.slice/runc-one.scope"),
        ("-.slice:runc:one", "/runc-one.scope"),
        ("machine.slice::guests.slice", "/machine.slice/guests.slice"),
    ],
)
def test_a_scope_in_its_slices(path: str, group: str) -> None:
    assert systemd.group_of(path) == group


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/ns/id", "SLICE:PREFIX:NAME"),
        ("system.slice:docker", "SLICE:PREFIX:NAME"),
        ("system.slice:docker:", "SLICE:PREFIX:NAME"),
        ("a:b:c:d", "SLICE:PREFIX:NAME"),
        ("system:docker:id", "'system' is no name of a slice"),
        ("a--b.slice:docker:id", "'a--b.slice' is no name of a slice"),
        ("-a.slice:docker:id", "'-a.slice' is no name of a slice"),
        (".slice:docker:id", "'.slice' is no name of a slice"),
    ],
)
def test_what_is_no_group_of_systemds(path: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        systemd.group_of(path)


def test_whether_it_runs(tmp_path: Path) -> None:
    assert systemd.is_running(str(tmp_path))
    assert not systemd.is_running(str(tmp_path / "absent"))


def test_a_recorded_host_of_systemds(tmp_path: Path) -> None:
    """A pod's container as Debian 12 shows it: /proc/PID/cgroup and the group's files."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    group = systemd.group_of("kubepods-pod8a.slice:cri-containerd:c1")
    (proc / "77").mkdir(parents=True)
    (proc / "77/cgroup").write_text(f"0::{group}\n")
    folder = Path(f"{root}{group}")
    folder.mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma misc\n")
    (folder / "cgroup.procs").write_text("77\n")
    (folder / "pids.current").write_text("1\n")
    (folder / "pids.max").write_text("max\n")
    found = cgroups.of_pid(77, str(root), str(proc))
    assert found.unified
    assert found.folder("memory") == str(folder)
    assert cgroups.pids(found) == [77]
