"""The reference pages, written from the code: configuration, metrics, and the verbs of sctl.

The pages in ``docs/reference`` are kept in git so that people can read them there; a test fails
when one is not what this module writes. ``./dev docs`` writes them anew.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.registry import CollectorRegistry

from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2
from supervisord.contracts.tasks import Metric
from supervisord.contracts.typed import pack
from supervisord.metrics.containers import ContainerCollector
from supervisord.metrics.daemon import DaemonCollector, LoopLag
from supervisord.metrics.grpc_calls import GrpcCollector
from supervisord.services.counters import CallCounters

FOLDER = Path(__file__).resolve().parents[3] / "docs/reference"
_NOTE = "*Written from the code by `./dev docs`; a test keeps it so.*\n"


def configuration() -> str:
    """Every key of the configuration with its meaning and default."""
    from supervisord.daemon.builtins import BUILTINS
    from supervisord.daemon.config import default
    from supervisord.daemon.config_text import commented

    text = commented(default(BUILTINS), BUILTINS)
    return (
        f"# Configuration\n\n{_NOTE}\nThis is what `supervisord config default` prints. A file "
        "needs only the keys that differ; flags win over the file. A key that does not exist "
        f"is an error.\n\n```toml\n{text}```\n\n{_proxies()}{_foreign()}"
    )


def _proxies() -> str:
    """The keys of plugins in other processes."""
    from supervisord.daemon.config_proxies import KEYS

    rows = [f"| `{key}` | `{default!r}` | {text} |\n" for key, (default, text) in KEYS.items()]
    return (
        "## Plugins in other processes\n\nEach has a table `[proxy_plugins.NAME]`, as with "
        "containerd; see [plugins](../plugins.md).\n\n"
        f"| key | default | meaning |\n|---|---|---|\n{''.join(rows)}\n"
    )


def _foreign() -> str:
    """What becomes of containerd's keys that mean nothing here."""
    from supervisord.daemon import config_foreign as foreign

    rows = [(f"`{key}`", why) for key, why in foreign.SECTIONS.items()]
    rows += [(f'`[plugins."{uri}"]`', why) for uri, why in foreign.PLUGINS.items()]
    for key, why in foreign.PLUGIN_KEYS.items():
        uri, _, name = key.rpartition(".")
        rows.append((f'`{name}` of `[plugins."{uri}"]`', why))
    table = "".join(f"| {key} | {why} |\n" for key, why in rows)
    aliases = "".join(
        f"`{theirs}` is read as `{ours}`. " for theirs, ours in foreign.ALIASES.items()
    )
    return (
        "## A file written for containerd\n\nVersions 2 and 3 are read. These keys of containerd's "
        "have no effect; one that is set is named in a warning at the start. "
        f"{aliases}\n\n"
        f"| key | why |\n|---|---|\n{table}"
    )


# Metrics ------------------------------------------------------------------------------------


def _fill(message: Message) -> None:
    """Sets every field, so that every metric that depends on one appears."""
    for field in message.DESCRIPTOR.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                continue
            inner = getattr(message, field.name)
            _fill(inner.add() if field.is_repeated else inner)
        else:
            value = "x" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 1
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def _statistics() -> list[tuple[str, Metric]]:
    samples: tuple[Message, ...] = (v1.Metrics(), v2.Metrics())
    for sample in samples:
        _fill(sample)
    return [("default", Metric("c", 0, pack(sample))) for sample in samples]


def _families() -> list[Family]:
    registry = CollectorRegistry()
    counters = CallCounters()
    counters.method("service", "method", "unary").finished(0, 0.1)
    registry.register(GrpcCollector(counters, histogram=True))
    registry.register(DaemonCollector("0", lambda: {"/topic": 1}, lambda: 1, None, {"noun": 1}))
    registry.register(ContainerCollector(_statistics))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    LoopLag(registry)
    return sorted(registry.collect(), key=lambda family: family.name)


def metrics() -> str:
    """Every metric with its type, labels and meaning."""
    rows = []
    for family in _families():
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        rows.append(
            f"| `{family.name}{suffix}` | {family.type} | "
            f"{', '.join(sorted(labels)) or '-'} | {family.documentation} |"
        )
    return (
        f"# Metrics\n\n{_NOTE}\nServed over HTTP as `/v1/metrics` and `/metrics` where the "
        "configuration has an address under `[metrics]`. Which of the container metrics there "
        "are depends on the machine's version of control groups.\n\n"
        "| name | type | labels | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


# sctl ---------------------------------------------------------------------------------------


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, inner in action.choices.items():
                if name in helps:
                    yield name, inner


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            name += f" {action.metavar or action.dest.upper()}"
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        yield f"| `{name.replace('|', chr(92) + '|')}` | {text.replace('|', chr(92) + '|')} |"


def _table(parser: argparse.ArgumentParser) -> list[str]:
    rows = list(_options(parser))
    return ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []


def sctl() -> str:
    """Every noun, verb and flag."""
    for name in ("CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE"):
        os.environ.pop(name, None)  # they are defaults of flags
    from supervisord.cli.arguments import Parser, build

    top = build()
    lines = ["# sctl", "", _NOTE, "Global flags come before the noun.", "", *_table(top)]
    for noun, parser in _verbs(top):
        assert isinstance(parser, Parser)
        lines += [f"## sctl {noun}", ""]
        if parser.filled().description:
            lines += [parser.description or "", ""]
        lines += _table(parser)
        for verb, inner in _verbs(parser):
            first = (inner.description or "").split("\n\n")[0]
            lines += [f"### sctl {noun} {verb}", "", first, "", *_table(inner)]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"configuration.md": configuration, "metrics.md": metrics, "sctl.md": sctl}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page, write in PAGES.items():
        (FOLDER / page).write_text(write())
