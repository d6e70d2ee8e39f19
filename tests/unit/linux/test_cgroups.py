"""Control groups: recorded v1 and v2 trees, and this machine's own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2
from supervisord.contracts.errors import NotFound
from supervisord.linux import cgroups, oom


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = {
    "cpu/web/cpu.stat": "nr_periods 7\nnr_throttled 3\nthrottled_time 12345\nwait_sum 9\n",
    "cpuacct/web/cpuacct.stat": "user 50\nsystem 25\n",
    "cpuacct/web/cpuacct.usage": "761234567\n",
    "cpuacct/web/cpuacct.usage_percpu": "700000000 61234567 \n",
    "memory/web/memory.stat": (
        "cache 4096\nrss 8192\nrss_huge 0\nshmem 1\nmapped_file 12\npgpgin 5\npgpgout 6\n"
        "pgfault 7\npgmajfault 8\nhierarchical_memory_limit 9223372036854771712\n"
        "hierarchical_memsw_limit 11\ntotal_cache 99\ntotal_pgpgin 13\ntotal_pgmajfault 14\n"
    ),
    "memory/web/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/web/memory.usage_in_bytes": "1000\n",
    "memory/web/memory.max_usage_in_bytes": "2000\n",
    "memory/web/memory.failcnt": "3\n",
    "memory/web/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/web/memory.memsw.usage_in_bytes": "1500\n",
    "pids/web/pids.current": "4\n",
    "pids/web/pids.max": "max\n",
    "blkio/web/blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\nTotal 30\n",
    "blkio/web/blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
    "hugetlb/web/hugetlb.2MB.usage_in_bytes": "2097152\n",
    "hugetlb/web/hugetlb.2MB.max_usage_in_bytes": "4194304\n",
    "hugetlb/web/hugetlb.2MB.failcnt": "1\n",
    "rdma/web/rdma.current": "mlx4_0 hca_handle=2 hca_object=max\n",
    "devices/web/cgroup.procs": "30\n4\n",
    "devices/web/sub/cgroup.procs": "5\n",
}
CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma", "devices")


def test_v1(tmp_path: Path) -> None:
    tree(tmp_path, V1)
    cgroup = cgroups.Cgroup(str(tmp_path), False, dict.fromkeys(CONTROLLERS, "/web"))
    stats = cgroups.stats(cgroup)
    assert isinstance(stats, v1.Metrics)
    assert stats.cpu.usage.total == 761234567
    assert (stats.cpu.usage.user, stats.cpu.usage.kernel) == (500_000_000, 250_000_000)
    assert list(stats.cpu.usage.per_cpu) == [700000000, 61234567]
    assert stats.cpu.throttling == v1.Throttle(periods=7, throttled_periods=3, throttled_time=12345)
    assert stats.memory.pg_pg_in == 5 and stats.memory.total_pg_maj_fault == 14
    assert stats.memory.hierarchical_swap_limit == 11 and stats.memory.total_cache == 99
    assert stats.memory.usage == v1.MemoryEntry(
        usage=1000, max=2000, failcnt=3, limit=9223372036854771712
    )
    assert stats.memory.swap.usage == 1500
    assert stats.memory_oom_control.oom_kill == 2
    assert stats.pids == v1.PidsStat(current=4, limit=0)
    assert [(e.op, e.major, e.value) for e in stats.blkio.io_service_bytes_recursive] == [
        ("Read", 8, 10),
        ("Write", 8, 20),
    ]
    assert stats.hugetlb[0] == v1.HugetlbStat(usage=2097152, max=4194304, failcnt=1, pagesize="2MB")
    assert stats.rdma.current[0].hca_objects == (1 << 32) - 1
    assert cgroups.pids(cgroup) == [4, 5, 30]


def test_v1_group_that_is_gone(tmp_path: Path) -> None:
    cgroup = cgroups.Cgroup(str(tmp_path), False, dict.fromkeys(CONTROLLERS, "/web"))
    with pytest.raises(NotFound):
        cgroups.stats(cgroup)
    with pytest.raises(NotFound):
        cgroups.pids(cgroup)


V2 = {
    "cgroup.controllers": "cpu io memory pids\n",
    "web/cgroup.procs": "9\n8\n",
    "web/cpu.stat": (
        "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 1\nnr_throttled 2\n"
        "throttled_usec 3\nnr_bursts 4\nburst_usec 5\ncore_sched.force_idle_usec 0\n"
    ),
    "web/cpu.pressure": "some avg10=1.50 avg60=0.10 avg300=0.01 total=77\n",
    "web/memory.stat": "anon 1\nfile 2\npgfault 3\nworkingset_refault_anon 4\nthp_fault_alloc 5\n",
    "web/memory.current": "4096\n",
    "web/memory.max": "max\n",
    "web/memory.peak": "8192\n",
    "web/memory.swap.max": "0\n",
    "web/memory.events": "low 0\nhigh 0\nmax 1\noom 2\noom_kill 3\noom_group_kill 0\n",
    "web/memory.pressure": "some avg10=0 avg60=0 avg300=0 total=1\nfull avg10=2.5 total=6\n",
    "web/pids.current": "2\n",
    "web/pids.max": "max\n",
    "web/io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16\n",
    "web/hugetlb.2MB.current": "0\n",
    "web/hugetlb.2MB.rsvd.current": "0\n",
    "web/hugetlb.2MB.max": "max\n",
    "web/hugetlb.2MB.events": "max 6\n",
}


def test_v2(tmp_path: Path) -> None:
    tree(tmp_path, V2)
    tree(tmp_path / "proc", {"42/cgroup": "0::/web\n"})
    cgroup = cgroups.of_pid(42, str(tmp_path), str(tmp_path / "proc"))
    assert cgroup.unified
    stats = cgroups.stats(cgroup)
    assert isinstance(stats, v2.Metrics)
    assert stats.cpu.usage_usec == 100 and stats.cpu.burst_usec == 5
    assert stats.cpu.psi.some.avg10 == 1.5 and stats.cpu.psi.some.total == 77
    assert stats.memory.anon == 1 and stats.memory.thp_fault_alloc == 5
    assert stats.memory.usage == 4096 and stats.memory.usage_limit == cgroups.MAX
    assert stats.memory.psi.full.avg10 == 2.5
    assert stats.memory_events.oom_kill == 3
    assert stats.pids.current == 2 and stats.pids.limit == cgroups.MAX
    assert list(stats.io.usage) == [v2.IOEntry(major=8, rbytes=10, wbytes=20, rios=1, wios=2)]
    assert list(stats.hugetlb) == [v2.HugeTlbStat(max=cgroups.MAX, pagesize="2MB", failcnt=6)]
    assert cgroups.pids(cgroup) == [8, 9]


def test_hybrid_paths(tmp_path: Path) -> None:
    text = "5:name=systemd:/a\n4:cpu,cpuacct:/b\n1:memory:/c:d\n0::/u\n"
    tree(tmp_path, {"proc/7/cgroup": text})
    cgroup = cgroups.of_pid(7, str(tmp_path), str(tmp_path / "proc"))
    assert not cgroup.unified
    assert cgroup.folder("cpuacct") == f"{tmp_path}/cpuacct/b"
    assert cgroup.folder("memory") == f"{tmp_path}/memory/c:d"
    assert cgroup.folder("name=systemd") == f"{tmp_path}/systemd/a"
    assert cgroup.folder("") == f"{tmp_path}/unified/u"
    with pytest.raises(NotFound):
        cgroup.folder("pids")


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="process 7"):
        cgroups.of_pid(7, str(tmp_path), str(tmp_path))


def test_this_machine() -> None:
    cgroup = cgroups.of_pid(os.getpid())
    stats = cgroups.stats(cgroup)
    assert stats.DESCRIPTOR.full_name.startswith("io.containerd.cgroups.v")
    assert os.getpid() in cgroups.pids(cgroup)


@pytest.fixture
def small_group() -> Iterator[str]:
    """A group with 12 MiB of memory, by the name of this process."""
    name = f"/supervisord-test-{os.getpid()}"
    unified = cgroups.is_unified()
    root = cgroups.ROOT if unified else f"{cgroups.ROOT}/memory"
    limit = "memory.max" if unified else "memory.limit_in_bytes"
    folder = Path(root + name)
    try:
        folder.mkdir()
        (folder / limit).write_text(str(12 << 20))
        if unified:
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no memory controller here: {error}")
    yield name
    folder.rmdir()


def test_oom_is_noticed(small_group: str) -> None:
    unified = cgroups.is_unified()
    cgroup = cgroups.Cgroup(cgroups.ROOT, unified, {"memory": small_group, "": small_group})
    watch = oom.watch(cgroup)
    try:
        assert watch.take() == 0
        procs = f"{cgroup.folder('memory')}/cgroup.procs"
        code = f"open({procs!r}, 'w').write('0'); x = bytearray(64 << 20)"
        child = subprocess.run([sys.executable, "-c", code], check=False)
        assert child.returncode == -9
        assert select.select([watch], [], [], 5)[0]
        assert watch.take() >= 1
    finally:
        watch.close()
    with pytest.raises(NotFound):
        oom.watch(cgroups.Cgroup(cgroups.ROOT, unified, {"memory": "/none", "": "/none"}))
