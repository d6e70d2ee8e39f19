"""``python -m bench``: runs the cases on both daemons in turn and prints one table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import grpc

from bench import census, figures, layers, paired, registry, soak
from bench.cases import CASES, UNASKED, Plan
from bench.client import Client, unique
from bench.daemons import COMMANDS, Daemon, StartFailed, running
from bench.figures import Results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description="Our daemon beside Debian's containerd, case by case."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--count", type=int, default=20, help="repetitions in a case (20)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is run (3)")
    parser.add_argument("--layer-mib", type=int, default=64, help="size of the layer (64)")
    parser.add_argument("--layer-files", type=int, default=2000, help="files in it (2000)")
    parser.add_argument("--layer", metavar="FILE", help="unpack this layer (tar.gz) instead")
    parser.add_argument("--idle", type=int, default=500, help="idle containers at a time (500)")
    parser.add_argument("--runtime", default="runc", help="OCI runtime for both (runc)")
    parser.add_argument("--json", metavar="FILE", help="write the raw values there")
    parser.add_argument("--strict", action="store_true", help="fail when a goal is missed")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    return arguments


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _round(
    number: int, names: list[str], daemons: dict[str, tuple[Daemon, Client]], plan: Plan
) -> tuple[list[tuple[str, figures.Figure, float]], list[str]]:
    """Every case on every daemon; who goes first alternates."""
    found, failures = [], []
    for case in names:
        for name in list(daemons)[:: 1 if number % 2 == 0 else -1]:
            try:
                found += [(name, f, value) for f, value in CASES[case](daemons[name][1], plan)]
            except (grpc.RpcError, RuntimeError, ValueError, OSError) as error:
                failures.append(f"{case} on {name}: {_reason(error)}")
    return found, failures


def main() -> int:
    """Answers 1 if a case failed, or with --strict if a goal was missed."""
    if sys.argv[1:2] == ["soak"]:
        return soak.main(sys.argv[2:])
    if sys.argv[1:2] == ["paired"]:
        return paired.main(sys.argv[2:])
    arguments = _arguments()
    layer = (
        Path(arguments.layer).read_bytes()
        if arguments.layer
        else layers.tree(arguments.layer_mib, arguments.layer_files)
    )
    plan = Plan(arguments.count, layer, arguments.idle)
    results, failures = Results(), []
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sv-bench-")))
        group = unique("bench-")
        stack.callback(census.remove_group, group)
        stack.callback(registry.close)
        daemons: dict[str, tuple[Daemon, Client]] = {}
        for name in COMMANDS:
            try:
                daemon = stack.enter_context(running(name, base))
            except StartFailed as error:
                sys.stderr.write(f"bench: {error}\n")
                return 1
            client = Client(daemon.address, arguments.runtime, group)
            stack.callback(client.close)
            client.load_base(layers.busybox())
            daemons[name] = daemon, client
            results.add(name, figures.READY, daemon.ready_seconds * 1e3)
        for number in range(arguments.rounds):
            sys.stderr.write(f"bench: round {number + 1} of {arguments.rounds}\n")
            found, failed = _round(number, arguments.cases or list(UNASKED), daemons, plan)
            failures += failed
            for name, figure, value in found:
                results.add(name, figure, value)
        for name, (daemon, _) in daemons.items():
            results.add(name, figures.DAEMON_RSS, daemon.rss() / 2**20)
    theirs, ours = COMMANDS
    sys.stdout.write(results.table(theirs, ours) + "\n")
    for line in failures:
        sys.stderr.write(f"bench: failed: {line}\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results.as_json(), indent=1))
    return int(bool(failures or (arguments.strict and results.missed(theirs, ours))))


if __name__ == "__main__":
    sys.exit(main())
