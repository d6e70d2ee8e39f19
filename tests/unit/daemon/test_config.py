"""The configuration file: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.plugins import PluginContext, Registration
from supervisord.daemon import config_foreign as foreign
from supervisord.daemon import parts_engine
from supervisord.daemon.builtins import BUILTINS
from supervisord.daemon.config import ConfigError, default, load
from supervisord.daemon.config_proxies import registrations
from supervisord.daemon.config_text import commented, plain


async def _start(context: PluginContext) -> Any:
    return object()


PLUGIN = Registration(
    "io.containerd.snapshotter.v1",
    "overlayfs",
    _start,
    config={"root_path": "", "slow": False, "depth": 3, "ratio": 0.5, "options": []},
    config_help={"root_path": "Where it lives."},
)
URI = "io.containerd.snapshotter.v1.overlayfs"


def _load(tmp_path: Path, text: str, **flags: Any) -> Any:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load(str(file), [PLUGIN], flags)


def test_the_file_is_laid_over_the_defaults(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        f'version = 2\nroot = "/r"\n[grpc]\naddress = "/s.sock"\ngid = 7\n'
        f'[plugins."{URI}"]\nslow = true\nratio = 1\n',
    )
    assert (config.root, config.state) == ("/r", "/run/supervisord")
    assert (config["grpc"]["gid"], config["grpc"]["uid"]) == (7, 0)
    assert config.ttrpc_address == "/s.sock.ttrpc"
    assert config.plugins[URI] == {
        "root_path": "",
        "slow": True,
        "depth": 3,
        "ratio": 1.0,
        "options": [],
    }


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = _load(
        tmp_path, 'root = "/file"\nstate = "/kept"\n', top={"root": "/flag", "state": None}
    )
    assert (config.root, config.state) == ("/flag", "/kept")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rot = 1", "unknown key rot; the nearest known one is root"),
        ("[grpc]\nadress = 1", "unknown key grpc.adress; the nearest known one is grpc.address"),
        ("[gprc]\nuid = 1", "unknown key gprc; the nearest known one is grpc"),
        (
            '[plugins."io.containerd.snapshotter.v1.overlay"]\n',
            f'unknown key plugins."io.containerd.snapshotter.v1.overlay"; '
            f'the nearest known one is plugins."{URI}"',
        ),
        (
            f'[plugins."{URI}"]\nslo = 1',
            f'unknown key plugins."{URI}".slo; the nearest known one is plugins."{URI}".slow',
        ),
        ('[grpc]\nuid = "0"', "grpc.uid: must be an integer"),
        ("[grpc]\nuid = true", "grpc.uid: must be an integer"),
        ("grpc = 1", "grpc: must be a table"),
        ("root = 1", "root: must be a string"),
        ("disabled_plugins = [1]", "disabled_plugins: must be a list, each item a string"),
        (f'[plugins."{URI}"]\ndepth = 1.5', f'plugins."{URI}".depth: must be an integer'),
        ("version = 1", "version: 1 is not supported; use 3 (or 2)"),
        ("version = 4", "version: 4 is not supported; use 3 (or 2)"),
        ('root = "relative"', "root: must be an absolute path, not 'relative'"),
        ('root = "/a"\nstate = "/a"', "root and state: must be different folders"),
        ("oom_score = -1001", "oom_score: -1001 is not between -1000 and 1000"),
        ('[debug]\nlevel = "loud"', "debug.level: 'loud' is none of trace, debug, info"),
        ('[metrics]\naddress = "here"', "metrics.address: 'here' must be HOST:PORT"),
        ("[grpc]\nmax_recv_message_size = 0", "grpc.max_recv_message_size: must be above zero"),
        ("version = ", "is not TOML"),
        ("imports = 1", "imports: must be a list of strings"),
        ('imports = ["config.toml"]', "imports: the file imports itself"),
        ('imports = ["missing.toml"]', "cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_imports_are_laid_over_the_file_in_order(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.toml").write_text('root = "/ten"\n[grpc]\nuid = 10\n')
    (tmp_path / "conf.d" / "20.toml").write_text("[grpc]\nuid = 20\n")
    config = _load(tmp_path, 'imports = ["conf.d/*.toml"]\nroot = "/main"\nstate = "/main-state"\n')
    assert (config.root, config.state, config["grpc"]["uid"]) == ("/ten", "/main-state", 20)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/no/such\.toml: cannot be read"):
        load("/no/such.toml", [])


def test_the_commented_default_says_what_every_key_means_and_loads_again(tmp_path: Path) -> None:
    text = commented(default([PLUGIN]), [PLUGIN])
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#") and "root_path" not in line:
            section = [entry for entry in lines[:number] if entry.startswith("[")]
            if not (section and "plugins" in section[-1]):
                assert lines[number - 1].startswith("# "), line
    assert "# Where it lives.\nroot_path" in text
    assert _load(tmp_path, text) == default([PLUGIN])


def test_the_dump_is_what_is_in_force(tmp_path: Path) -> None:
    config = _load(tmp_path, 'root = "/a\\"b"\n[metrics]\naddress = "127.0.0.1:0"\n')
    dumped = tomllib.loads(plain(config))
    assert dumped["root"] == '/a"b'
    assert dumped["metrics"]["address"] == "127.0.0.1:0"
    assert dumped["plugins"][URI]["depth"] == 3


def test_what_containerd_knows_is_passed_over_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "PLUGIN_KEYS", {f"{URI}.theirs": "there is none"})
    config = _load(
        tmp_path,
        """
        disabled_plugins = ["cri", "io.containerd.grpc.v1.cri"]
        temp = ""
        [timeouts]
        "io.containerd.timeout.task.state" = "2s"
        [debug]
        address = ""
        [grpc]
        tcp_address = "127.0.0.1:1"
        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "/usr/lib/cni"
        [plugins."io.containerd.snapshotter.v1.overlayfs"]
        slow = true
        theirs = true
        """,
    )
    assert sorted(config.ignored) == [
        "disabled_plugins cri",
        "grpc.tcp_address",
        'plugins."io.containerd.grpc.v1.cri"',
        'plugins."io.containerd.snapshotter.v1.overlayfs".theirs',
        "timeouts",
    ]
    assert config.plugins[URI]["slow"] is True


def test_proxy_plugins(tmp_path: Path) -> None:
    assert _load(tmp_path, "[proxy_plugins]\n").proxies == {}
    text = (
        '[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "unix:///run/s.sock"\n'
        'capabilities = ["rebase"]\nexports = { root = "/x" }\nplatform = "linux/arm64"\n'
    )
    config = _load(tmp_path, text)
    assert config.proxies["stargz"]["address"] == "/run/s.sock"
    (plugin,) = registrations(config.proxies)
    assert plugin.uri == "io.containerd.snapshotter.v1.stargz"
    assert plugin.platform == "linux/arm64"
    whole = 'type = "io.containerd.differ.v1"\naddress = "/s"\n'
    (plugin,) = registrations(_load(tmp_path, f"[proxy_plugins.d]\n{whole}").proxies)
    assert plugin.uri == "io.containerd.differ.v1.d"
    assert 'address = "/run/s.sock"' in plain(config)


def test_a_proxy_can_be_disabled_by_name(tmp_path: Path) -> None:
    proxy = '[proxy_plugins.far]\ntype = "snapshot"\naddress = "/s"\n'
    config = _load(tmp_path, f'disabled_plugins = ["io.containerd.snapshotter.v1.far"]\n{proxy}')
    assert config.ignored == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('x = "no table"', r"proxy_plugins\.x: must be a table"),
        ("[proxy_plugins.x]", r"proxy_plugins\.x\.type: '' is none of snapshot, diff"),
        ('[proxy_plugins.x]\ntype = "foo"', r"proxy_plugins\.x\.type: 'foo' is none of"),
        ('[proxy_plugins.x]\ntype = "content"\naddress = "/s"', r"x\.type: content is kept"),
        ('[proxy_plugins.x]\ntype = "diff"', r"proxy_plugins\.x\.address: '' is not the absolute"),
        ('[proxy_plugins.x]\ntype = "diff"\naddress = "tcp://h:1"', r"x\.address: 'tcp://h:1'"),
        ("[proxy_plugins.x]\naddress = 5", r"proxy_plugins\.x\.address: must be a string"),
        ('[proxy_plugins.x]\nadress = "/s"', r"x\.adress; the nearest known one is .*x\.address"),
        (
            '[proxy_plugins."../x"]\ntype = "diff"\naddress = "/s"',
            r"proxy_plugins\.\.\./x\.name: identifier",
        ),
        (
            '[proxy_plugins.x]\ntype = "diff"\naddress = "/s"\nplatform = "a b"',
            r"proxy_plugins\.x\.platform: 'a b' is not",
        ),
        (
            '[proxy_plugins.x]\ntype = "diff"\naddress = "/s"\nexports = { a = 1 }',
            r"proxy_plugins\.x\.exports\.a: must be a string",
        ),
        (
            '[proxy_plugins.x]\ntype = "diff"\naddress = "/s"\ntimeout = "0s"',
            r"proxy_plugins\.x\.timeout: must be above zero",
        ),
    ],
)
def test_mistakes_in_proxy_plugins_are_named(tmp_path: Path, text: str, says: str) -> None:
    text = f"[proxy_plugins]\n{text}" if not text.startswith("[") else text
    with pytest.raises(ConfigError, match=says):
        _load(tmp_path, text)


def test_metadata_goes_by_containerds_name_too(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[plugins."io.containerd.metadata.v1.bolt"]\n'
        'content_sharing_policy = "isolated"\nno_sync = true\n'
    )
    config = load(str(file), BUILTINS)
    sqlite = config.plugins["io.containerd.metadata.v1.sqlite"]
    assert sqlite["content_sharing_policy"] == "isolated"
    assert list(config.ignored) == ['plugins."io.containerd.metadata.v1.bolt".no_sync']


def test_what_shims_get_is_configured_where_containerd_has_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[plugins."io.containerd.shim.v1.manager"]\nenv = ["A=1", "B=x=y"]\n'
        '[plugins."io.containerd.runtime.v2.task"]\nsched_core = true\n'
        '[plugins."io.containerd.runtime.v2.task".runtimes]\n"io.containerd.runc.v2" = "/x"\n'
    )
    table = load(str(file), BUILTINS).plugins["io.containerd.runtime.v2.task"]
    assert parts_engine.environment(table) == {"SCHED_CORE": "1", "A": "1", "B": "x=y"}
    assert parts_engine.named(table["runtimes"]) == {"io.containerd.runc.v2": "/x"}
    for runtimes in ({"a.b": "relative"}, {"a.b": 7}):
        with pytest.raises(InvalidArgument, match=r"runtimes\.a\.b: must be the absolute path"):
            parts_engine.named(runtimes)
    for entry in ("A", "=1"):
        with pytest.raises(InvalidArgument, match="env: must be NAME=VALUE"):
            parts_engine.environment({**table, "env": [entry]})


def test_what_is_listed_as_foreign_is_not_ours() -> None:
    uris = {registration.uri for registration in BUILTINS}
    assert not uris & set(foreign.PLUGINS)
    keys = {f"{r.uri}.{key}" for r in BUILTINS for key in r.config}
    assert not keys & set(foreign.PLUGIN_KEYS)
    assert all(key.rpartition(".")[0] in uris for key in foreign.PLUGIN_KEYS)


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed")
def test_containerds_own_default_is_accepted(tmp_path: Path) -> None:
    done = subprocess.run(
        ["containerd", "config", "default"], capture_output=True, text=True, check=True, timeout=20
    )
    file = tmp_path / "config.toml"
    file.write_text(done.stdout)
    config = load(str(file), BUILTINS)
    assert config.address == "/run/containerd/containerd.sock"
    assert 'plugins."io.containerd.grpc.v1.cri"' in config.ignored


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[plugins."io.containerd.gc.v1.scheduler"]\nschedule_delay = "soon"', "no duration"),
        ("[grpc]\nuid = -1", "grpc.uid: must not be below zero"),
        ('[metrics]\naddress = "127.0.0.1:99999"', "must be HOST:PORT"),
    ],
)
def test_values_are_checked_before_anything_starts(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(str(file), BUILTINS)


def test_stream_processors_are_read_as_containerd_writes_them(tmp_path: Path) -> None:
    """Also where they come from several files."""
    (tmp_path / "more.toml").write_text('[stream_processors.two]\npath = "b"\n')
    file = tmp_path / "config.toml"
    file.write_text('imports = ["more.toml"]\n[stream_processors."x.y"]\npath = "a"\n')
    config = load(str(file), BUILTINS)
    found = config.plugins["io.containerd.differ.v1.walking"]["stream_processors"]
    assert found == {"x.y": {"path": "a"}, "two": {"path": "b"}}
    assert config.ignored == {}
    file.write_text("stream_processors = 1\n")
    with pytest.raises(ConfigError, match="stream_processors: must be a table"):
        load(str(file), BUILTINS)
