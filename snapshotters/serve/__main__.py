"""``python -m snapshotters.serve``: a snapshotter as a proxy plugin, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from snapshotters.lock import hold
from snapshotters.plugin import ROOT_PATH
from supervisord import __version__
from supervisord.contracts.errors import Error
from supervisord.contracts.plugins import Registration, SkipPlugin

from .plugin import Context, available, configured

log = logging.getLogger("snapshotters.serve")

_LEVELS = ("debug", "info", "warning", "error")


def _parser(found: Mapping[str, Registration]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m snapshotters.serve",
        description="Serves one snapshotter on a unix socket, as a proxy plugin of containerd\n"
        "or of this daemon. SIGTERM lets calls under way end; snapshots stay.",
        epilog=_options_help(found),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "-s", "--snapshotter", required=True, choices=sorted(found), help="which one"
    )
    parser.add_argument("-r", "--root", required=True, metavar="DIR", help="where snapshots are")
    parser.add_argument("-a", "--address", required=True, metavar="SOCKET", help="unix socket")
    parser.add_argument(
        "-o", "--option", action="append", default=[], metavar="KEY=VALUE",
        help="a key of the snapshotter's configuration; the value is TOML",
    )  # fmt: skip
    parser.add_argument("--uid", type=int, default=0, help="owner of the socket (0)")
    parser.add_argument("--gid", type=int, default=0, help="group of the socket (0)")
    parser.add_argument("-l", "--log-level", choices=_LEVELS, default="info", help="(info)")
    return parser


def _options_help(found: Mapping[str, Registration]) -> str:
    lines = ["options of the snapshotters:"]
    for name, registration in sorted(found.items()):
        for key, default in registration.config.items():
            if key != ROOT_PATH:
                text = registration.config_help.get(key, "")
                lines.append(f"  {name}: {key} ({default!r})\n      {text}")
    lines += ["", "in the configuration of containerd, or of this daemon:"]
    lines += ["  [proxy_plugins.NAME]", '  type = "snapshot"', '  address = "SOCKET"']
    return "\n".join(lines)


async def serve(registration: Registration, given: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT. Raises Error, SkipPlugin, OSError."""
    from .server import SnapshotServer

    config = configured(registration, given.option)
    root = str(Path(given.root).absolute())
    address = str(Path(given.address).absolute())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(hold(f"{root}/serve.lock"))
        snapshotter = await registration.start(Context(root, address, config, stack))
        server = SnapshotServer(snapshotter, address, uid=given.uid, gid=given.gid)
        stack.push_async_callback(server.stop)
        await server.start()
        log.info("serving %s in %s on %s", registration.id, root, address)
        await stop.wait()
        log.info("stopping")


def main(argv: Sequence[str] | None = None) -> int:
    """Answers the exit status: 0 after a stop, 1 with one line where it cannot serve."""
    found = available()
    given = _parser(found).parse_args(argv)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        asyncio.run(serve(found[given.snapshotter], given))
    except (Error, SkipPlugin, OSError) as error:
        print(f"snapshotters.serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
