"""The configuration as TOML text: commented defaults, and what is in force."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from supervisord.contracts.plugins import Registration

from .config import SECTIONS, TOP, Config

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def commented(config: Config, registrations: Iterable[Registration]) -> str:
    """The whole configuration with what each key means above it."""
    help_of = {r.uri: r.config_help for r in registrations}
    lines: list[str] = []
    for section, values in config.sections.items():
        lines += _table("" if section == TOP else section, values, _help(section))
    for uri, table in sorted(config.plugins.items()):
        lines += _table(f'plugins."{uri}"', table, help_of.get(uri, {}))
    for name, proxy in sorted(config.proxies.items()):
        lines += _table(f"proxy_plugins.{_key(name)}", proxy, {})
    return "\n".join(lines).rstrip() + "\n"


def plain(config: Config) -> str:
    """The whole configuration without comments."""
    return commented_off(commented(config, ()))


def commented_off(text: str) -> str:
    """The text without its comment lines."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")) + "\n"


def _help(section: str) -> dict[str, str]:
    return {key: text for key, (_, text) in SECTIONS[section].items()}


def _table(name: str, values: Mapping[str, Any], help: Mapping[str, str]) -> list[str]:
    lines = [f"[{name}]"] if name else []
    nested: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            nested += [f"# {help[key]}"] if help.get(key) else []
            nested += _table(f"{name}.{_key(key)}", value, {})
            continue
        if help.get(key):
            lines.append(f"# {help[key]}")
        lines.append(f"{_key(key)} = {_value(value)}")
    return [*lines, "", *nested]


def _key(key: str) -> str:
    return key if _BARE.match(key) else _value(key)


def _value(value: Any) -> str:
    """JSON's text of these types is TOML's too; tables inside lists are written inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
