"""The shape of the command line: global flags, nouns, verbs.

A noun's module is imported only when its name was typed, so that ``sctl --help`` stays quick.
``main`` calls ``build``; each module of ``nouns`` declares its verbs in ``register(noun)``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import CliError
from .values import duration

DEFAULT_ADDRESS = "/run/supervisord/supervisord.sock"

Command = Callable[[argparse.Namespace], None]


@dataclass(frozen=True, slots=True)
class NounEntry:
    """One noun: its name, the module of ``nouns`` that registers it, a line of help, aliases."""

    name: str
    module: str
    summary: str
    aliases: tuple[str, ...] = ()


NOUNS = (
    NounEntry("run", "run", "run a container"),
    NounEntry("images", "images", "manage images", ("image", "i")),
    NounEntry("containers", "containers", "manage containers", ("container", "c")),
    NounEntry("tasks", "tasks", "manage tasks: the running processes", ("task", "t")),
    NounEntry("sandboxes", "sandboxes", "manage sandboxes", ("sandbox", "sb", "s")),
    NounEntry("snapshots", "snapshots", "manage snapshots", ("snapshot",)),
    NounEntry("content", "content", "manage content"),
    NounEntry("namespaces", "namespaces", "manage namespaces", ("namespace", "ns")),
    NounEntry("leases", "leases", "manage leases", ("lease",)),
    NounEntry("gc", "gc", "remove what nothing refers to, or list it"),
    NounEntry("why", "why", "tell what keeps a thing alive"),
    NounEntry("events", "events", "show events as they happen", ("event",)),
    NounEntry("top", "top", "show what running containers use"),
    NounEntry("logs", "logs", "show the log file of a container"),
    NounEntry("check", "check", "check what is stored, and repair it"),
    NounEntry("backup", "backup", "copy the daemon's databases"),
    NounEntry("plugins", "plugins", "show the daemon's plugins", ("plugin",)),
    NounEntry("version", "version", "show the versions of sctl and of the daemon"),
    NounEntry("completion", "completion", "print a completion script for bash or zsh"),
)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wider than argparse's default, so that most flags fit on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class Parser(argparse.ArgumentParser):
    """A parser that fills itself when it is first needed and reports errors in one line."""

    def __init__(self, *args: Any, fill: Callable[[Parser], None] | None = None, **kwargs: Any):
        kwargs.setdefault("formatter_class", _Formatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._fill = fill

    def filled(self) -> Parser:
        """This parser with all its arguments declared."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        path = self.prog.partition(" ")[2]
        where = f"{path}: " if path else ""
        raise CliError(f"{where}{message} (see '{self.prog} --help')")


class Noun:
    """What a noun's module declares its verbs on."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self._verbs: Any = None

    def command(self, run: Command, description: str = "") -> Parser:
        """Makes the noun itself a command (``run``, ``events``)."""
        self.parser.set_defaults(run=run)
        if description:
            self.parser.description = description
        return self.parser

    def verb(
        self, name: str, run: Command, summary: str, aliases: Sequence[str] = (), note: str = ""
    ) -> Parser:
        """Adds a verb; ``note`` is shown below the summary in its help."""
        if self._verbs is None:
            self._verbs = self.parser.add_subparsers(
                title="verbs", metavar="VERB", parser_class=Parser
            )
            self.parser.set_defaults(run=_show_help(self.parser))
        description = f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{note}" if note else "")
        parser: Parser = self._verbs.add_parser(
            name, help=summary, aliases=list(aliases), description=description
        )
        parser.set_defaults(run=run)
        return parser


def _show_help(parser: argparse.ArgumentParser) -> Command:
    def show(args: argparse.Namespace) -> None:
        sys.stdout.write(parser.format_help())

    return show


def _fill_noun(entry: NounEntry) -> Callable[[Parser], None]:
    def fill(parser: Parser) -> None:
        module = importlib.import_module(f"{__package__}.nouns.{entry.module}")
        module.register(Noun(parser))

    return fill


def build() -> Parser:
    """The whole command line, with the nouns not yet filled."""
    parser = Parser(
        prog="sctl",
        description="Talks to supervisord, or to any containerd.",
        epilog="'sctl NOUN --help' lists the verbs of a noun, 'sctl NOUN VERB --help' its flags.",
    )
    add = parser.add_argument
    add("--address", "-a", metavar="SOCKET", default=_env("CONTAINERD_ADDRESS", DEFAULT_ADDRESS),
        help="the daemon's socket [$CONTAINERD_ADDRESS] (default: %(default)s)")  # fmt: skip
    add("--namespace", "-n", metavar="NAME", default=_env("CONTAINERD_NAMESPACE", "default"),
        help="the namespace to work in [$CONTAINERD_NAMESPACE] (default: %(default)s)")  # fmt: skip
    add("--timeout", type=duration, default=0.0, metavar="TIME",
        help="how long the whole command may take (default: no limit)")  # fmt: skip
    add("--connect-timeout", type=duration, default=0.0, metavar="TIME",
        help="how long to wait for the daemon to come up (default: not at all)")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", "-v", action="store_true", dest="show_version", help="print sctl's version")
    nouns = parser.add_subparsers(title="nouns", metavar="NOUN", parser_class=Parser)
    for entry in NOUNS:
        nouns.add_parser(
            entry.name,
            help=entry.summary,
            aliases=list(entry.aliases),
            fill=_fill_noun(entry),
            description=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
        )
    parser.set_defaults(run=_show_help(parser))
    return parser


def _env(name: str, default: str) -> str:
    return os.environ.get(name) or default


def format_flag(parser: argparse.ArgumentParser) -> None:
    """Adds ``--format table|json``."""
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="how to print the result"
    )


def quiet_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--quiet/-q``."""
    parser.add_argument("--quiet", "-q", action="store_true", help=f"print only the {what}")


def snapshotter_flag(parser: argparse.ArgumentParser) -> None:
    """Adds ``--snapshotter``; empty means the namespace's default."""
    parser.add_argument(
        "--snapshotter",
        default=_env("CONTAINERD_SNAPSHOTTER", ""),
        metavar="NAME",
        help="snapshotter [$CONTAINERD_SNAPSHOTTER] (default: the namespace's, or overlayfs)",
    )
