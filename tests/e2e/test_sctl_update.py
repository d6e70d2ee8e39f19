"""``sctl tasks update`` on a real container."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conformance.daemons import cgroup_folders
from tests.e2e.conftest import Stand


def values(stand: Stand, id: str, *names: str) -> list[str]:
    """What the files of these names say in the container's control groups, 1 or 2."""
    return [
        (folder / name).read_text().strip()
        for name in names
        for folder in cgroup_folders(f"/{stand.shop.namespace}/{id}")
        if (folder / name).exists()
    ]


def test_limits_are_changed(stand: Stand, unique: str, tmp_path: Path) -> None:
    stand.sctl("run", "-d", "--null-io", stand.image, unique, "sleep", "600")
    stand.sctl("tasks", "update", "--memory", "80M", "--pids-limit", "31", "--cpus", "0.5", unique)
    memory = ("memory.limit_in_bytes", "memory.max")
    assert values(stand, unique, *memory) == [str(80 << 20)]
    assert values(stand, unique, "pids.max") == ["31"]
    assert values(stand, unique, "cpu.cfs_quota_us", "cpu.max") in (["50000"], ["50000 100000"])

    file = tmp_path / "resources.json"
    file.write_text(json.dumps({"memory": {"limit": 90 << 20}, "pids": {"limit": 32}}))
    stand.sctl("tasks", "update", "--resources", str(file), "--pids-limit", "33", unique)
    assert values(stand, unique, *memory) == [str(90 << 20)]
    assert values(stand, unique, "pids.max") == ["33"]
    text = json.dumps({"cpu": {"shares": 512}}).encode()
    stand.sctl("tasks", "update", "--resources", "-", unique, input=text)
    assert values(stand, unique, "cpu.shares", "cpu.weight") in (["512"], ["20"])
    stand.sctl("tasks", "update", "--pids-limit", "-1", unique)
    assert values(stand, unique, "pids.max") == ["max"]
    assert values(stand, unique, *memory) == [str(90 << 20)]
    stand.sctl("tasks", "rm", "--force", unique)
    stand.sctl("containers", "rm", unique)


def test_what_is_refused(stand: Stand, unique: str) -> None:
    update = ["tasks", "update"]
    stand.sctl.refused(*update, unique, says="nothing to change")
    stand.sctl.refused(*update, "--memory", "much", unique, says="is not a size")
    stand.sctl.refused(*update, "--resources", "/no/such", unique, says="/no/such")
    stand.sctl.refused(*update, "--cpus", "1", "--cpu-quota", "5", unique, says="exclude")
    stand.sctl.refused(*update, "--pids-limit", "5", unique, says=[unique, "not found"])
