"""The spec that flags make, compared with what containerd's own client makes of the same flags."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from supervisord.cli.errors import CliError
from supervisord.cli.spec import env, flags, mounts
from supervisord.cli.spec.defaults import ALL_CAPABILITIES, CAPABILITIES, default_spec


def made(*words: str) -> dict[str, Any]:
    """The spec after the flags."""
    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    args = parser.parse_args(words)
    spec = default_spec("ns", "id")
    mounts.apply(spec, args.mount)
    spec["process"]["env"] = env.merge(["PATH=/bin", "A=1"], flags.environment(args))
    flags.apply(spec, args)
    return spec


def test_the_default_spec() -> None:
    spec = default_spec("ns", "web")
    assert spec["linux"]["cgroupsPath"] == "/ns/web"
    assert [item["type"] for item in spec["linux"]["namespaces"]] == [
        "pid", "ipc", "uts", "mount", "network",
    ]  # fmt: skip
    assert [item["destination"] for item in spec["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run",
    ]  # fmt: skip
    rules = spec["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {(rule["major"], rule.get("minor")) for rule in rules[1:]} == {
        (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None),
    }  # fmt: skip
    process = spec["process"]
    assert process["noNewPrivileges"] is True
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    assert process["capabilities"]["bounding"] == list(CAPABILITIES)
    assert "inheritable" not in process["capabilities"]


def test_specs_share_nothing() -> None:
    first, second = default_spec("a", "b"), default_spec("a", "b")
    first["mounts"][0]["options"].append("x")
    first["process"]["capabilities"]["bounding"].clear()
    first["linux"]["maskedPaths"].clear()
    assert second == default_spec("a", "b")


def test_process_flags() -> None:
    spec = made("-t", "--env", "B=2", "--env", "A", "--cwd", "/x", "--hostname", "h")
    assert spec["process"]["terminal"] is True
    assert spec["process"]["env"] == ["PATH=/bin", "B=2", "TERM=xterm"]
    assert spec["process"]["cwd"] == "/x"
    assert spec["hostname"] == "h"
    assert "TERM=xterm" not in made("-t", "-e", "TERM=vt100")["process"]["env"]


def test_env_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nA=file\n\nC=3\n")
    spec = made("--env-file", str(file), "--env", "C=4")
    assert spec["process"]["env"] == ["PATH=/bin", "A=file", "C=4"]
    with pytest.raises(CliError, match="--env-file"):
        made("--env-file", str(tmp_path / "none"))


def test_isolation_flags() -> None:
    spec = made("--net-host", "--read-only", "--allow-new-privs", "--rootfs-propagation", "shared",
                "--cgroup", "/my/group", "--with-ns", "ipc:/proc/1/ns/ipc")  # fmt: skip
    linux = spec["linux"]
    assert spec["root"] == {"path": "rootfs", "readonly": True}
    assert spec["process"]["noNewPrivileges"] is False
    assert linux["rootfsPropagation"] == "shared"
    assert linux["cgroupsPath"] == "/my/group"
    assert {"type": "network"} not in linux["namespaces"]
    assert {"type": "ipc", "path": "/proc/1/ns/ipc"} in linux["namespaces"]
    assert [item["type"] for item in linux["namespaces"]].count("ipc") == 1
    assert f"HOSTNAME={socket.gethostname()}" in spec["process"]["env"]
    bound = {item["destination"]: item for item in spec["mounts"]}
    assert bound["/etc/resolv.conf"]["options"] == ["rbind", "ro"]
    assert bound["/etc/hosts"]["type"] == "bind"


def test_joining_a_network_after_net_host() -> None:
    linux = made("--net-host", "--with-ns", "network:/proc/1/ns/net")["linux"]
    assert {"type": "network", "path": "/proc/1/ns/net"} in linux["namespaces"]


def test_user_namespaces() -> None:
    linux = made("--uidmap", "0:1000:10", "--gidmap", "0:2000:20")["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 10}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 2000, "size": 20}]


def test_privileged() -> None:
    spec = made("--privileged")
    linux = spec["linux"]
    held = int(
        next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("CapEff")
        ),
        16,
    )
    expected = [name for bit, name in enumerate(ALL_CAPABILITIES) if held >> bit & 1]
    assert spec["process"]["capabilities"]["effective"] == expected
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "maskedPaths" not in linux
    assert "readonlyPaths" not in linux
    assert "/dev/null" in {device["path"] for device in linux["devices"]}
    assert not any(device["path"].startswith("/dev/pts/") for device in linux["devices"])
    sysfs = next(item for item in spec["mounts"] if item["type"] == "sysfs")
    assert "rw" in sysfs["options"]
    assert "ro" not in sysfs["options"]


def test_capabilities_are_added_and_dropped_once() -> None:
    sets = made("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_CHOWN", "--cap-drop", "CAP_KILL")[
        "process"
    ]["capabilities"]
    for held in sets.values():
        assert held.count("CAP_CHOWN") == 1
        assert "CAP_SYS_ADMIN" in held
        assert "CAP_KILL" not in held


def test_limits() -> None:
    spec = made("--memory-limit", "64M", "--cpus", "1.5", "--cpuset-cpus", "0", "--pids-limit", "9",
                "--rlimit-nofile", "10:20")  # fmt: skip
    resources = spec["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"shares": 1024, "quota": 150000, "period": 100000, "cpus": "0"}
    assert resources["pids"] == {"limit": 9}
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 20, "soft": 10}]


def test_a_device_is_made_and_allowed() -> None:
    linux = made("--device", "/dev/null")["linux"]
    assert linux["devices"][0]["path"] == "/dev/null"
    assert linux["resources"]["devices"][-1] == {
        "allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm",
    }  # fmt: skip


def test_labels_are_annotations_too() -> None:
    spec = made("--annotation", "a=1", "--label", "b=2")
    assert spec["annotations"] == {"a": "1", "b": "2"}


def test_mounts_replace_defaults_of_the_same_place() -> None:
    spec = made("--mount", "type=tmpfs,src=tmpfs,dst=/run", "--mount",
                "type=bind,source=/tmp,destination=/host,options=rbind:ro")  # fmt: skip
    assert [item["destination"] for item in spec["mounts"]][-2:] == ["/run", "/host"]
    assert [item["destination"] for item in spec["mounts"]].count("/run") == 1
    assert spec["mounts"][-1] == {
        "type": "bind", "source": "/tmp", "destination": "/host", "options": ["rbind", "ro"],
    }  # fmt: skip


def test_a_comma_in_a_mount_can_be_quoted() -> None:
    mount = mounts.parse('type=bind,"src=/a,b",dst=/x')
    assert mount["source"] == "/a,b"


def test_profiles(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    spec = made("--seccomp-profile", str(profile), "--apparmor-profile", "mine")
    assert spec["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert spec["process"]["apparmorProfile"] == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cap-add", "SYS_ADMIN"], "--cap-add SYS_ADMIN: not a capability"),
        (["--cpus", "1", "--cpu-quota", "5"], "exclude each other"),
        (["--with-ns", "network"], "not of the form TYPE:PATH"),
        (["--with-ns", "x:/y"], "the type is one of"),
        (["--uidmap", "0:1:2"], "--uidmap and --gidmap go together"),
        (["--uidmap", "0:1", "--gidmap", "0:1:2"], "--uidmap 0:1: not of the form"),
        (["--mount", "type=bind"], "dst is missing"),
        (["--mount", "type=bind,dst"], "'dst' is not of the form key=value"),
        (["--mount", "kind=bind,dst=/x"], "unknown key 'kind'"),
        (["--device", "/etc/passwd"], "not a device node"),
        (["--device", "/dev/none"], "device /dev/none: no such file or directory"),
        (["--rlimit-nofile", "x"], "not of the form SOFT:HARD"),
        (["--seccomp-profile", "/none"], "--seccomp-profile /none"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(CliError) as raised:
        made(*words)
    assert message in str(raised.value)


def test_snapshot_labels() -> None:
    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    words = [
        "--remap-labels",
        "--uidmap",
        "0:1:2",
        "--gidmap",
        "0:3:4",
        "--snapshotter-label",
        "a=b",
    ]
    assert flags.snapshot_labels(parser.parse_args(words)) == {
        "a": "b",
        "containerd.io/snapshot/uidmapping": "0:1:2",
        "containerd.io/snapshot/gidmapping": "0:3:4",
    }
    with pytest.raises(CliError, match="--remap-labels needs"):
        flags.snapshot_labels(parser.parse_args(["--remap-labels"]))
