"""The configuration: read from TOML, checked against what is known, flags over it.

``SECTIONS`` is the one list of keys of the daemon itself, with defaults and help; the tables of
plugins come from their registrations. Names are containerd's for what both have. Every problem is
a ConfigError of one line that names the key; an unknown key also names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisord.contracts.durations import seconds
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.plugins import Registration

from . import config_foreign as foreign
from . import config_proxies as proxies

VERSIONS = (2, 3)
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")
FORMATS = ("text", "json")
DEFAULT_PATH = "/etc/supervisord/config.toml"

TOP = "top"
PROXIES = "proxy_plugins"
SECTIONS: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    TOP: {
        "version": (3, "Version of this file's format; 2 and 3 are read."),
        "root": ("/var/lib/supervisord", "Folder of what must survive a reboot."),
        "state": ("/run/supervisord", "Folder of what need not: sockets, bundles of tasks."),
        "disabled_plugins": ([], "Plugins not to start, as TYPE.ID or as a whole TYPE."),
        "required_plugins": ([], "Plugins (TYPE.ID) without which the daemon refuses to start."),
        "oom_score": (0, "oom_score_adj of the daemon, -1000 to 1000; 0 leaves it alone."),
        "imports": ([], "Further files, laid over this one; relative to its folder."),
    },
    "grpc": {
        "address": ("/run/supervisord/supervisord.sock", "Unix socket for clients."),
        "uid": (0, "Owner of the socket."),
        "gid": (0, "Group of the socket; its members may do everything root may."),
        "max_recv_message_size": (16 << 20, "Bytes of the largest request."),
        "max_send_message_size": (16 << 20, "Bytes of the largest reply."),
    },
    "ttrpc": {
        "address": ("", "Unix socket on which shims publish; empty for ADDRESS.ttrpc."),
        "uid": (0, "Owner of the socket."),
        "gid": (0, "Group of the socket."),
    },
    "debug": {
        "level": ("info", "One of " + ", ".join(LEVELS) + "."),
        "format": ("text", 'Of the log on standard error: "text" (logfmt) or "json".'),
    },
    "metrics": {
        "address": ("", "HOST:PORT that serves /v1/metrics and /metrics; empty for none."),
        "grpc_histogram": (False, "Whether to export histograms of how long calls take."),
    },
}


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class Config:
    """What is in force: the daemon's sections by name, and a table for each plugin by uri;
    ``ignored`` says of each key that has no effect why; ``proxies`` are the plugins in other
    processes by name."""

    sections: Mapping[str, Mapping[str, Any]]
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    proxies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getitem__(self, section: str) -> Mapping[str, Any]:
        return self.sections[section]

    @property
    def root(self) -> str:
        return str(self.sections[TOP]["root"])

    @property
    def state(self) -> str:
        return str(self.sections[TOP]["state"])

    @property
    def address(self) -> str:
        return str(self.sections["grpc"]["address"])

    @property
    def ttrpc_address(self) -> str:
        return str(self.sections["ttrpc"]["address"]) or f"{self.address}.ttrpc"


def default(registrations: Iterable[Registration] = ()) -> Config:
    """What holds without any file or flag."""
    sections = {
        name: {key: value for key, (value, _) in keys.items()} for name, keys in SECTIONS.items()
    }
    return Config(sections, {r.uri: dict(r.config) for r in registrations if r.config})


def load(
    path: str | None,
    registrations: Sequence[Registration],
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """The file over the defaults, and the flags (by section, None for not given) over the file.

    Without a path the default one is read if it is there. Raises ConfigError."""
    base = default(registrations)
    sections = {name: dict(keys) for name, keys in base.sections.items()}
    plugins = {uri: dict(table) for uri, table in base.plugins.items()}
    if path is None and Path(DEFAULT_PATH).exists():
        path = DEFAULT_PATH
    ignored: dict[str, str] = {}
    proxied: dict[str, dict[str, Any]] = {}
    if path is not None:
        for file, table in _files(Path(path), ()):
            _merge(str(file), table, sections, plugins, registrations, ignored)
            _merge_proxies(str(file), table.get(PROXIES, {}), proxied)
    for section, values in (flags or {}).items():
        sections[section].update({key: v for key, v in values.items() if v is not None})
    known = (*registrations, *proxies.registrations(proxied))
    _note_disabled(sections[TOP]["disabled_plugins"], known, ignored)
    config = Config(sections, plugins, ignored, proxied)
    _check(config)
    return config


def _files(path: Path, chain: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """The file and what it imports, in the order in which they are laid over each other."""
    if path in chain:
        raise ConfigError(f"{path}: imports: the file imports itself")
    import tomllib  # many daemons have no file

    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    found: list[tuple[Path, dict[str, Any]]] = []
    imports = table.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise ConfigError(f"{path}: imports: must be a list of strings")
    for item in imports:
        pattern = Path(item)
        folder = Path("/") if pattern.is_absolute() else path.parent
        relative = str(pattern.relative_to("/") if pattern.is_absolute() else pattern)
        if not any(char in relative for char in "*?["):
            found += _files(folder / relative, (*chain, path))
            continue
        for match in sorted(folder.glob(relative)):
            found += _files(match, (*chain, path))
    return [(path, table), *found]


def _merge(
    file: str,
    table: Mapping[str, Any],
    sections: dict[str, dict[str, Any]],
    plugins: dict[str, dict[str, Any]],
    registrations: Sequence[Registration],
    ignored: dict[str, str],
) -> None:
    for key, value in table.items():
        if key == "plugins":
            _merge_plugins(file, value, plugins, registrations, ignored)
        elif key in SECTIONS and key != TOP:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {key}: must be a table")
            for name, item in value.items():
                where = f"{key}.{name}"
                if name in SECTIONS[key]:
                    sections[key][name] = _typed(file, where, item, SECTIONS[key][name][0])
                elif not _passed_over(where, item, foreign.SECTIONS, ignored):
                    raise _unknown(file, where, [f"{key}.{n}" for n in SECTIONS[key]])
        elif key in SECTIONS[TOP]:
            sections[TOP][key] = _typed(file, key, value, SECTIONS[TOP][key][0])
        elif key in foreign.MOVED:
            uri, name = foreign.MOVED[key]
            _merge_plugins(file, {uri: {name: value}}, plugins, registrations, ignored)
        elif key != PROXIES and not _passed_over(key, value, foreign.SECTIONS, ignored):
            raise _unknown(file, key, [*SECTIONS[TOP], *list(SECTIONS)[1:], "plugins", PROXIES])


def _merge_proxies(file: str, tables: Any, proxied: dict[str, dict[str, Any]]) -> None:
    """A table replaces one of the same name in an earlier file as a whole, as in containerd."""
    if not isinstance(tables, dict):
        raise ConfigError(f"{file}: {PROXIES}: must be a table")
    for name, table in tables.items():
        where = f"{PROXIES}.{name}"
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {where}: must be a table")
        for key, value in table.items():
            if key not in proxies.KEYS:
                raise _unknown(file, f"{where}.{key}", [f"{where}.{k}" for k in proxies.KEYS])
            _typed(file, f"{where}.{key}", value, proxies.KEYS[key][0])
        try:
            proxied[name] = proxies.checked(name, table)
        except InvalidArgument as error:
            raise ConfigError(f"{file}: {where}.{error}") from error


def _merge_plugins(
    file: str,
    tables: Any,
    plugins: dict[str, dict[str, Any]],
    registrations: Sequence[Registration],
    ignored: dict[str, str],
) -> None:
    if not isinstance(tables, dict):
        raise ConfigError(f"{file}: plugins: must be a table")
    known = {r.uri: r for r in registrations}
    for written, table in tables.items():
        where = f'plugins."{written}"'
        uri = foreign.ALIASES.get(written, written)
        if uri not in known:
            if _passed_over(where, table, {where: foreign.PLUGINS.get(uri, "")}, ignored):
                continue
            raise _unknown(file, where, [f'plugins."{uri}"' for uri in known])
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {where}: must be a table")
        defaults = known[uri].config
        for name, value in table.items():
            key = f"{where}.{name}"
            if name in defaults:
                kept = plugins.setdefault(uri, dict(defaults))
                value = _typed(file, key, value, defaults[name])
                kept[name] = {**kept[name], **value} if isinstance(value, dict) else value
                continue
            reason = foreign.PLUGIN_KEYS.get(f"{uri}.{name}", "")
            if not _passed_over(key, value, {key: reason}, ignored):
                raise _unknown(file, key, [f"{where}.{n}" for n in defaults])


def _passed_over(key: str, value: Any, reasons: Mapping[str, str], ignored: dict[str, str]) -> bool:
    """Whether containerd knows the key. One that sets nothing needs no mention."""
    reason = reasons.get(key, "")
    if reason and value not in ("", 0, False, [], {}):
        ignored[key] = reason
    return bool(reason)


def _note_disabled(
    names: Sequence[str], registrations: Sequence[Registration], ignored: dict[str, str]
) -> None:
    """Disabling what is not there harms nobody, but may be a slip of the pen."""
    known = {name for r in registrations for name in (r.uri, r.type)}
    for name in names:
        if name not in known and name not in foreign.PLUGINS:
            near = _nearest(name, known, 0.6)
            hint = f"; the nearest known one is {near}" if near else ""
            ignored[f"disabled_plugins {name}"] = f"there is no such plugin{hint}"


def _unknown(file: str, key: str, known: Sequence[str]) -> ConfigError:
    near = _nearest(key, known, 0.0)
    hint = f"; the nearest known one is {near}" if near else "; it has no keys"
    return ConfigError(f"{file}: unknown key {key}{hint}")


def _nearest(name: str, known: Iterable[str], cutoff: float) -> str:
    """The known name that looks most like it; "" for none."""
    import difflib  # nobody with a correct configuration needs it

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), "")


_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def _typed(file: str, key: str, value: Any, default: Any) -> Any:
    """The value if it has the type of the default. A list's items are strings unless the default
    shows others."""
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{file}: {key}: must be {_NAMES.get(wanted, wanted.__name__)}")
    if wanted is list:
        item = type(default[0]) if default else str
        if any(type(entry) is not item for entry in value):
            raise ConfigError(f"{file}: {key}: must be a list, each item {_NAMES[item]}")
    if wanted is str and _is_duration(default):
        try:
            seconds(value, key)
        except InvalidArgument as error:
            raise ConfigError(f"{file}: {error}") from error
    return value


def _is_duration(text: str) -> bool:
    try:
        seconds(text, "")
    except InvalidArgument:
        return False
    return True


def _check(config: Config) -> None:
    """The rules that no type expresses."""
    top, debug = config[TOP], config["debug"]
    if top["version"] not in VERSIONS:
        raise ConfigError(f"version: {top['version']} is not supported; use 3 (or 2)")
    for key in ("root", "state"):
        if not top[key].startswith("/"):
            raise ConfigError(f"{key}: must be an absolute path, not {top[key]!r}")
    if Path(top["root"]) == Path(top["state"]):
        raise ConfigError("root and state: must be different folders")
    for key, value in (
        ("grpc.address", config.address),
        ("ttrpc.address", config.ttrpc_address),
    ):
        if not value.startswith("/"):
            raise ConfigError(f"{key}: must be the absolute path of a socket, not {value!r}")
    if not -1000 <= top["oom_score"] <= 1000:
        raise ConfigError(f"oom_score: {top['oom_score']} is not between -1000 and 1000")
    if debug["level"] not in ("", *LEVELS):
        raise ConfigError(f"debug.level: {debug['level']!r} is none of {', '.join(LEVELS)}")
    if debug["format"] not in ("", *FORMATS):
        raise ConfigError(f"debug.format: {debug['format']!r} is none of {', '.join(FORMATS)}")
    for section in ("grpc", "ttrpc"):
        for key in ("uid", "gid"):
            if config[section][key] < 0:
                raise ConfigError(f"{section}.{key}: must not be below zero")
    for key in ("max_recv_message_size", "max_send_message_size"):
        if config["grpc"][key] < 1:
            raise ConfigError(f"grpc.{key}: must be above zero")
    address = config["metrics"]["address"]
    port = address.rpartition(":")[2] if ":" in address else ""
    if address and not (port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"metrics.address: {address!r} must be HOST:PORT")
