"""The command ``supervisord``: parses flags, loads the configuration, runs or prints.

Imports stay light until something needs more: ``--help`` and ``config`` load no gRPC.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supervisord import __version__

if TYPE_CHECKING:
    from supervisord.contracts.plugins import Registration

    from .config import Config

Broken = Mapping[str, Exception]

_LEVELS = "trace, debug, info, warn, error, fatal, panic"


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-c", "--config", metavar="FILE", help="configuration (TOML)")
    common.add_argument("--root", metavar="DIR", help="folder of what must survive a reboot")
    common.add_argument("--state", metavar="DIR", help="folder of what need not")
    common.add_argument("-a", "--address", metavar="SOCKET", help="unix socket for clients")
    common.add_argument("-l", "--log-level", metavar="LEVEL", help=f"one of {_LEVELS}")
    common.add_argument("--log-format", metavar="FORMAT", help="text or json")
    parser = argparse.ArgumentParser(
        prog="supervisord",
        description="A container supervisor that every containerd client can drive.",
        epilog="Flags win over the configuration file. Without a command, the daemon runs until "
        "SIGTERM; containers outlive it.",
        parents=[common],
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-v", "--version", action="version", version=f"supervisord {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    config = commands.add_parser("config", help="print configurations", parents=[common])
    actions = config.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("default", help="a commented default", parents=[common])
    actions.add_parser("dump", help="what is in force, with file and flags", parents=[common])
    check = commands.add_parser(
        "check", help="check what is stored; the daemon must not run", parents=[common]
    )
    check.add_argument("--quick", action="store_true", help="compare names and sizes only")
    check.add_argument("--repair", action="store_true", help="put right what can be put right")
    check.add_argument("--namespace", metavar="NAME", help="of blobs that have lost their record")
    check.add_argument("--format", choices=("table", "json"), help="how to print the result")
    restore = commands.add_parser(
        "restore", help="bring back a backup; the daemon must not run", parents=[common]
    )
    restore.add_argument("file", metavar="FILE", help="what 'sctl backup' has written")
    publish = commands.add_parser(
        "publish", help="send an event, read from standard input, to the daemon", parents=[common]
    )
    publish.add_argument("--namespace", metavar="NAME", default="", help="namespace of the event")
    publish.add_argument("--topic", metavar="TOPIC", default="", help="such as /tasks/exit")
    return parser


def _flags(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    given = vars(arguments)
    return {
        "top": {"root": given.get("root"), "state": given.get("state")},
        "grpc": {"address": given.get("address")},
        "debug": {"level": given.get("log_level"), "format": given.get("log_format")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Answers the exit status: 1 with one line on a mistake in the
    configuration."""
    arguments = _parser().parse_args(argv)
    gc.disable()  # what is imported stays; ``lifecycle`` has it looked after once all is started

    from .builtins import BUILTINS
    from .config import ConfigError, default, load
    from .plugins import discovered

    extras, broken = discovered()
    registrations = (*BUILTINS, *extras)
    if getattr(arguments, "action", "") == "default":
        from .config_text import commented

        sys.stdout.write(commented(default(registrations), registrations))
        return 0
    try:
        config = load(getattr(arguments, "config", None), registrations, _flags(arguments))
    except ConfigError as error:
        print(f"supervisord: {error}", file=sys.stderr)
        return 1
    if getattr(arguments, "command", "") == "publish":
        from .publish import publish

        return publish(config.address, arguments.namespace, arguments.topic)
    if getattr(arguments, "action", "") == "dump":
        from .config_text import plain

        sys.stdout.write(plain(config))
        return 0
    if getattr(arguments, "command", "") in ("check", "restore"):
        from .offline import run

        return run(config, registrations, arguments)
    from .config_proxies import registrations as proxied

    return _run(config, (*registrations, *proxied(config.proxies)), broken)


def _run(config: Config, registrations: Sequence[Registration], broken: Broken) -> int:
    import asyncio
    import logging

    from .lifecycle import live
    from .logs import set_up

    set_up(config["debug"]["level"], config["debug"]["format"])
    for key, reason in config.ignored.items():
        fields = {"key": key, "reason": reason}
        logging.getLogger(__name__).warning("configuration key has no effect", extra=fields)
    for name, error in broken.items():
        fields = {"entry_point": name, "error": str(error)}
        logging.getLogger(__name__).warning("plugin not loaded", extra=fields)
    return asyncio.run(live(config, registrations))


if __name__ == "__main__":
    raise SystemExit(main())
