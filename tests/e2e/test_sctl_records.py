"""``sctl`` on namespaces, leases, content, snapshots, events, plugins and versions."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from tests.conformance.daemons import Daemon
from tests.e2e.conftest import Sctl, Stand


def test_version(sctl: Sctl, daemon: Daemon) -> None:
    both = json.loads(sctl("version", "--format", "json").out)
    assert both["server"]["version"]
    assert both["server"]["uuid"]
    assert both["client"]["version"] in sctl("version").out


def test_plugins(sctl: Sctl) -> None:
    records = json.loads(sctl("plugins", "ls", "--format", "json").out)
    found = {(record["type"], record["id"]): record["status"] for record in records}
    assert found["io.containerd.snapshotter.v1", "overlayfs"] == "ok"
    assert "overlayfs" in sctl("plugins", "ls", "-q", "type==io.containerd.snapshotter.v1").out
    assert "io.containerd.snapshotter.v1.overlayfs: ok" in sctl("plugins", "ls", "-d").out


def test_namespaces(sctl: Sctl, unique: str) -> None:
    sctl("namespaces", "create", unique, "a=1")
    try:
        sctl.refused("namespaces", "create", unique, says="already exists")
        records = json.loads(sctl("namespaces", "ls", "--format", "json").out)
        assert {"name": unique, "labels": {"a": "1"}} in records
        assert sctl("namespaces", "label", unique, "a=", "b=2").out == "b=2\n"
        assert unique in sctl("namespaces", "ls", "-q").out.split()
    finally:
        result = sctl("namespaces", "rm", unique, "no-such-namespace", code=1)
    assert result.out == f"{unique}\n"
    assert "no-such-namespace" in result.err


def test_a_namespace_in_use_is_not_removed(stand: Stand) -> None:
    stand.sctl.refused("namespaces", "rm", stand.shop.namespace, says="must be empty")


def test_leases(sctl: Sctl, unique: str) -> None:
    assert sctl("leases", "create", "--id", unique, "--expires", "1h", "a=b").out == f"{unique}\n"
    record = json.loads(sctl("leases", "ls", "--format", "json").out)[0]
    assert record["labels"]["a"] == "b"
    assert "containerd.io/gc.expire" in record["labels"]
    digest = sctl("content", "ingest", "ref", input=b"leased").out.strip()
    sctl("leases", "add-resource", unique, "content", digest)
    assert sctl("leases", "resources", unique).rows() == [["content", digest]]
    sctl("leases", "rm-resource", unique, "content", digest)
    assert sctl("leases", "resources", unique).rows() == []
    assert sctl("leases", "rm", "--sync", unique).out == f"{unique}\n"
    assert sctl("leases", "ls", "-q").out == ""


def test_content(sctl: Sctl) -> None:
    data = os.urandom(3 << 20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    words = ["--label", "containerd.io/gc.root=1", "--expected-digest", digest]
    ingested = sctl("content", "ingest", *words, "--expected-size", str(len(data)), "r", input=data)
    assert ingested.out == f"{digest}\n"
    assert sctl.raw("content", "get", digest).stdout == data
    assert sctl("content", "label", digest, "x=1").out == "containerd.io/gc.root=1,x=1\n"
    record = json.loads(sctl("content", "ls", "--format", "json", "labels.x==1").out)[0]
    assert (record["digest"], record["size"]) == (digest, len(data))
    assert sctl("content", "rm", digest).out == f"{digest}\n"
    sctl.refused("content", "get", digest, says="not found")
    assert sctl("content", "active").rows() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--expected-digest", "sha256:" + "0" * 64], "sha256:"),
        (["--expected-size", "99"], "the input ended"),
        (["--expected-digest", "nonsense"], "digest"),
    ],
)
def test_content_that_is_not_as_promised(sctl: Sctl, words: list[str], says: str) -> None:
    result = sctl("content", "ingest", *words, "r", input=b"data", code=1)
    assert says in result.err
    assert result.err.count("\n") == 1
    assert sctl("content", "active").rows() == []
    assert sctl("content", "ls", "-q").out == ""


def test_snapshots(sctl: Sctl, tmp_path: Path) -> None:
    def words(*rest: str) -> tuple[str, ...]:
        return ("snapshots", "--snapshotter", "native", *rest)

    mounts = json.loads(sctl(*words("prepare", "--mounts", "active")).out)
    (Path(mounts[0]["source"]) / "file").write_text("x" * 10000)
    assert sctl(*words("mounts", "/mnt", "active")).out.startswith("mount -t bind ")
    usage = json.loads(sctl(*words("usage", "--format", "json", "active")).out)[0]
    assert usage["size"] >= 10000
    sctl(*words("commit", "base", "active"))
    sctl(*words("view", "seen", "base"))
    sctl(*words("prepare", "next", "base"))
    assert sctl(*words("tree")).out == "base\n  \\_ next\n  \\_ seen\n"
    info = json.loads(sctl(*words("info", "seen")).out)
    assert (info["Parent"], info["Kind"]) == ("base", "View")
    assert sctl(*words("label", "seen", "a=1")).out == "a=1\n"
    assert sctl(*words("ls", "-q", "kind==committed")).out == "base\n"
    layer = sctl.raw(*words("diff", "base")).stdout
    assert layer[:2] == b"\x1f\x8b"
    digest = sctl(*words("diff", "--keep", "base")).out.strip()
    assert digest in sctl("content", "ls", "-q").out
    sctl("content", "rm", digest)
    sctl.refused(*words("rm", "base"), says="base")
    assert sctl(*words("rm", "next", "seen", "base")).out == "next\nseen\nbase\n"


def test_events(sctl: Sctl, unique: str) -> None:
    words = ("events", "--format", "json", "--count", "2", 'topic~="^/namespaces/"')
    with sctl.background(*words) as process:
        time.sleep(1.0)
        sctl("namespaces", "create", unique)
        sctl("namespaces", "rm", unique)
        assert process.wait(10) == 0
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    assert [event["topic"] for event in events] == ["/namespaces/create", "/namespaces/delete"]
    assert events[0]["event"]["name"] == unique


def test_filters_are_checked_by_the_daemon(sctl: Sctl) -> None:
    result = sctl.refused("containers", "ls", "a==")
    assert result.err.count("\n") == 1


def test_timeouts(sctl: Sctl, daemon: Daemon, tmp_path: Path) -> None:
    begin = time.monotonic()
    late = Sctl(str(tmp_path / "later.sock"), "default")
    late.refused("--connect-timeout", "300ms", "version", says="no such file or directory")
    assert 0.3 < time.monotonic() - begin < 5
    result = sctl("--timeout", "500ms", "events", code=1)
    # Containerd's own word for it, with another code, may come first.
    late_word = not daemon.ours and "context deadline exceeded" in result.err
    assert result.err.startswith("sctl: no answer from ") or late_word, result.err


def test_debug_shows_the_traceback(sctl: Sctl) -> None:
    assert "Traceback" in sctl("--debug", "content", "get", "nonsense", code=1).err


# Garbage collection --------------------------------------------------------------------------


def _blob(sctl: Sctl, text: str, *labels: str) -> str:
    words = [word for label in labels for word in ("--label", label)]
    return sctl("content", "ingest", *words, text, input=text.encode()).out.strip()


def test_gc(sctl: Sctl, unique: str) -> None:
    kept = _blob(sctl, f"kept {unique}", "containerd.io/gc.root=1")
    gone = _blob(sctl, f"gone {unique}")
    assert sctl("gc").out.startswith(("collected ", "nothing to collect"))
    assert sctl("content", "ls", "-q").out.split() == [kept]
    assert gone != kept
    assert json.loads(sctl("gc", "--format", "json").out)["seconds"] > 0
    sctl.refused("gc", "--only", sctl.namespace, says="--dry-run")


@pytest.mark.only("containerd", reason="the other one can tell")
def test_gc_of_another_daemon(sctl: Sctl) -> None:
    sctl.refused("gc", "--dry-run", says="this daemon cannot tell")
    sctl.refused("why", "thing", says="this daemon cannot tell")


_OURS = pytest.mark.only("supervisord", reason="the service is our own")


@_OURS
def test_gc_takes_what_it_showed(sctl: Sctl, unique: str) -> None:
    kept = _blob(sctl, f"kept {unique}", "containerd.io/gc.root=1")
    sctl("leases", "create", "--id", unique)
    gone = _blob(sctl, f"gone {unique}", "containerd.io/gc.root=1")
    sctl("leases", "add-resource", unique, "content", gone)
    sctl("content", "label", gone, "containerd.io/gc.root=")
    where = ["--only", sctl.namespace]
    assert sctl("gc", "--dry-run", *where).out == "nothing would go\n"
    lines = sctl("why", gone).out.splitlines()
    assert lines[0] == f"blob {gone}: kept by 1 thing"
    assert lines[1].startswith(f"  lease {unique}, until ")
    assert lines[2] == f"    held: blob {gone}"
    sctl("leases", "rm-resource", unique, "content", gone)
    size = len(f"gone {unique}")
    # The daemon may have collected it by itself meanwhile.
    shown = json.loads(sctl("gc", "--dry-run", "--format", "json", *where).out)
    assert shown in (
        [],
        [{"namespace": sctl.namespace, "type": "content", "id": gone, "size": size}],
    )
    sctl("gc")
    assert sctl("content", "ls", "-q").out.split() == [kept]
    sctl.refused("why", gone, says="nothing in namespace")
    assert sctl("why", kept[7:20]).out == (
        f"blob {kept}: kept by its own label containerd.io/gc.root\n"
    )


@_OURS
def test_why_an_image_is_there(stand: Stand) -> None:
    assert stand.sctl("why", stand.image).out == f"image {stand.image}: stays until it is removed\n"
    (record,) = json.loads(stand.sctl("images", "ls", "--format", "json").out)
    (why,) = json.loads(stand.sctl("why", "--format", "json", record["digest"]).out)
    assert why["kept"]
    assert {chain["links"][0]["type"] for chain in why["chains"]} == {"images"}
    snapshot = stand.sctl("snapshots", "ls", "-q").out.split()[0]
    text = stand.sctl("why", "--type", "snapshots", snapshot).out
    assert f"image {stand.image}" in text
    assert "containerd.io/gc.ref.snapshot.overlayfs: overlayfs snapshot" in text
