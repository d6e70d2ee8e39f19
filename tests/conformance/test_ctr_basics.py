"""``ctr version``, ``namespaces`` and ``plugins``."""

from __future__ import annotations

from .ctr import Ctr
from .daemons import Daemon


def test_version_names_client_and_server(ctr: Ctr) -> None:
    answer = ctr("version").out
    server = answer.partition("Server:")[2]
    assert "Version:" in server
    assert "Revision:" in server
    assert "UUID:" in server


def test_namespace_create_list_label_remove(ctr: Ctr, unique: str) -> None:
    ctr("ns", "create", unique, "color=red")
    rows = {row[0]: row[1:] for row in ctr("ns", "ls").rows()}
    assert rows[unique] == ["color=red"]
    ctr("ns", "label", unique, "color=", "size=big")
    rows = {row[0]: row[1:] for row in ctr("ns", "ls").rows()}
    assert rows[unique] == ["size=big"]
    ctr.refused("ns", "create", unique, says="already exists")
    assert ctr("ns", "rm", unique).out == f"{unique}\n"
    assert unique not in ctr("ns", "ls", "-q").out.split()


def test_namespace_that_is_not_empty_is_not_removed(ctr: Ctr, namespace: str) -> None:
    ctr("content", "ingest", "ref", input=b"something")
    result = ctr.refused("ns", "rm", namespace, says="must be empty")
    assert namespace in result.err
    assert namespace in ctr("ns", "ls", "-q").out.split()


def test_namespace_name_is_checked(ctr: Ctr) -> None:
    ctr.refused("ns", "create", "not/valid", says="not/valid")
    ctr.refused("ns", "create", "x" * 77, says="76")


def test_plugins_are_all_up(ctr: Ctr, daemon: Daemon) -> None:
    rows = ctr("plugins", "ls").rows()
    found = {(row[0], row[1]): row[-1] for row in rows}
    assert set(found.values()) <= {"ok", "skip"}, found
    wanted = {
        ("io.containerd.snapshotter.v1", "overlayfs"),
        ("io.containerd.snapshotter.v1", "native"),
        ("io.containerd.content.v1", "content"),
        ("io.containerd.runtime.v2", "task"),
        ("io.containerd.gc.v1", "scheduler"),
        ("io.containerd.differ.v1", "walking"),
    }
    services = (
        "containers content diff events healthcheck images introspection leases namespaces "
        "snapshots tasks version"
    ).split()
    wanted |= {("io.containerd.grpc.v1", service) for service in services}
    assert wanted <= {key for key, status in found.items() if status == "ok"}


def test_plugin_of_a_snapshotter_shows_its_root(ctr: Ctr, daemon: Daemon) -> None:
    answer = ctr("plugins", "ls", "-d", "id==overlayfs").out
    assert str(daemon.root) in answer
    assert "linux/amd64" in answer
