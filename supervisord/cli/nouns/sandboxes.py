"""``sctl sandboxes``: run, stop, list and remove sandboxes, the shims that containers share."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import RUNTIME_LABEL, Connection, connect
from ..errors import CliError, Failures, is_code, rpc_text
from ..output import listing, moment, show, show_json, warn
from ..spec.flags import RUNTIME
from ..values import duration, labels_of, pair, require

if TYPE_CHECKING:
    from protos.containerd.types.types_pb2 import Sandbox

SANDBOXER = "shim"
SANDBOXER_LABEL = "containerd.io/defaults/sandboxer"
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb(
        "run",
        run,
        "create and start a sandbox, and print its id",
        ["create", "c", "r"],
        note="CONFIG is a JSON file with an OCI spec, for runtimes that want one.\n"
        "Run containers in it with: sctl run --sandbox ID ...",
    )
    verb.usage = "sctl sandboxes run [FLAGS] [CONFIG] ID"
    verb.add_argument("words", nargs="+", metavar="[CONFIG] ID")
    verb.add_argument("--runtime", default="", metavar="NAME", help="as with sctl run")
    verb.add_argument("--netns", default="", metavar="PATH", help="the network namespace to hold")
    verb.add_argument("--label", action="append", type=pair, default=[], metavar="KEY=VALUE")
    verb.add_argument("--annotation", action="append", type=pair, default=[], metavar="KEY=VALUE")
    _sandboxer_flag(verb)

    verb = noun.verb("ls", list_sandboxes, "list sandboxes", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as labels.app==web")
    quiet_flag(verb, "ids")
    format_flag(verb)

    verb = noun.verb("info", info, "show everything about a sandbox as JSON", ["inspect", "i"])
    verb.add_argument("id", metavar="ID")

    verb = noun.verb("stop", stop, "end what runs in sandboxes; their containers stay")
    verb.add_argument("ids", nargs="+", metavar="ID")
    verb.add_argument(
        "--grace", type=duration, default=0.0, metavar="TIME",
        help="how long processes may take to end by themselves (default: not at all)",
    )  # fmt: skip

    verb = noun.verb("rm", remove, "stop and remove sandboxes with their tasks", ["remove"])
    verb.add_argument("ids", nargs="+", metavar="ID")
    verb.add_argument("--force", "-f", action="store_true", help="also one that does not stop")


def _sandboxer_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sandboxer", default="", metavar="NAME",
        help="controller that runs it (default: the namespace's, or shim)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Creates the record, then the instance; what a failure leaves is removed."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire
    from protos.containerd.types.types_pb2 import Sandbox

    require(len(args.words) <= 2, "one CONFIG and one ID at most")
    id, config = args.words[-1], args.words[0] if len(args.words) == 2 else ""
    with connect(args) as daemon, ExitStack() as undo:
        sandbox = Sandbox(
            sandbox_id=id,
            labels=labels_of(args.label),
            sandboxer=args.sandboxer or daemon.defaults.get(SANDBOXER_LABEL) or SANDBOXER,
        )
        sandbox.runtime.name = args.runtime or daemon.defaults.get(RUNTIME_LABEL) or RUNTIME
        if config:
            sandbox.spec.type_url, sandbox.spec.value = _SPEC_TYPE, _spec(config)
        created = daemon.sandbox_store.Create(wire.StoreCreateRequest(sandbox=sandbox)).sandbox
        undo.callback(_forget, daemon, id)
        daemon.sandboxes.Create(
            wire.ControllerCreateRequest(
                sandbox_id=id,
                sandboxer=created.sandboxer,
                sandbox=created,
                netns_path=args.netns,
                annotations=labels_of(args.annotation),
            )
        )
        undo.callback(_shut_down, daemon, created)
        daemon.sandboxes.Start(
            wire.ControllerStartRequest(sandbox_id=id, sandboxer=created.sandboxer)
        )
        undo.pop_all()
    show(id)


def _spec(path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
        require(isinstance(json.loads(text), dict), f"{path}: not a JSON object")
    except (OSError, ValueError) as error:
        raise CliError(f"{path}: {error}") from None
    return text


def _forget(daemon: Connection, id: str) -> None:
    """Deletes a record as an undo: a failure is told, not raised."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    try:
        daemon.sandbox_store.Delete(wire.StoreDeleteRequest(sandbox_id=id))
    except grpc.RpcError as error:
        warn(f"sandbox {id} could not be removed: {rpc_text(error, daemon.address)}")


def _shut_down(daemon: Connection, sandbox: Sandbox) -> None:
    """Ends an instance; one that is not there is none to end."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    request = wire.ControllerShutdownRequest(
        sandbox_id=sandbox.sandbox_id, sandboxer=sandbox.sandboxer
    )
    try:
        daemon.sandboxes.Shutdown(request)
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise


def list_sandboxes(args: argparse.Namespace) -> None:
    """Prints the sandboxes that match, each with its state."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    with connect(args) as daemon:
        found = daemon.sandbox_store.List(wire.StoreListRequest(filters=args.filters)).list
        if args.quiet:
            for sandbox in found:
                show(sandbox.sandbox_id)
            return
        records = [_record(sandbox, _status(daemon, sandbox)) for sandbox in found]
    columns = [
        ("ID", "id"),
        ("CREATED", "created_at"),
        ("RUNTIME", "runtime"),
        ("STATE", "state"),
        ("PID", "pid"),
    ]
    listing(records, columns, format=args.format)


def _status(daemon: Connection, sandbox: Sandbox, *, verbose: bool = False) -> Any:
    """The instance's status; None where it cannot be had."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    request = wire.ControllerStatusRequest(
        sandbox_id=sandbox.sandbox_id, sandboxer=sandbox.sandboxer, verbose=verbose
    )
    try:
        return daemon.sandboxes.Status(request)
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT"):
            return None
        raise


def _record(sandbox: Sandbox, status: Any) -> dict[str, Any]:
    return {
        "id": sandbox.sandbox_id,
        "created_at": moment(sandbox.created_at),
        "runtime": sandbox.runtime.name,
        "sandboxer": sandbox.sandboxer,
        "labels": dict(sandbox.labels),
        "state": status.state if status else "",
        "pid": status.pid if status else 0,
    }


def info(args: argparse.Namespace) -> None:
    """Prints the record in ctr's shape, and the status beside it."""
    with connect(args) as daemon:
        sandbox = _get(daemon, args.id)
        status = _status(daemon, sandbox, verbose=True)
    show_json(
        {
            "ID": sandbox.sandbox_id,
            "Labels": dict(sandbox.labels),
            "Runtime": {"Name": sandbox.runtime.name, "Options": sandbox.runtime.options.type_url},
            "Spec": _decoded(sandbox.spec.value),
            "Sandboxer": sandbox.sandboxer,
            "CreatedAt": moment(sandbox.created_at),
            "UpdatedAt": moment(sandbox.updated_at),
            "Extensions": {key: value.type_url for key, value in sandbox.extensions.items()},
            "Status": status
            and {
                "State": status.state,
                "Pid": status.pid,
                "Address": status.address,
                "Version": status.version,
                "CreatedAt": moment(status.created_at),
                "ExitedAt": moment(status.exited_at),
                "Info": {key: _decoded(text.encode()) for key, text in status.info.items()},
            },
        }
    )


def _decoded(text: bytes) -> Any:
    """JSON where it is that; else the text."""
    try:
        return json.loads(text or b"null")
    except (ValueError, RecursionError):
        return text


def _get(daemon: Connection, id: str) -> Sandbox:
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    return daemon.sandbox_store.Get(wire.StoreGetRequest(sandbox_id=id)).sandbox


def stop(args: argparse.Namespace) -> None:
    """Stops sandboxes; goes on after a failure."""
    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for id in args.ids:
            with failures.of(id):
                _stop(daemon, _get(daemon, id), args.grace)
                show(id)
    failures.check()


def _stop(daemon: Connection, sandbox: Sandbox, grace: float = 0.0) -> None:
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    daemon.sandboxes.Stop(
        wire.ControllerStopRequest(
            sandbox_id=sandbox.sandbox_id, sandboxer=sandbox.sandboxer, timeout_secs=int(grace)
        )
    )


def remove(args: argparse.Namespace) -> None:
    """Removes instances and records; goes on after a failure."""
    from protos.containerd.services.sandbox.v1 import sandbox_pb2 as wire

    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for id in args.ids:
            with failures.of(id):
                sandbox = _get(daemon, id)
                try:
                    _stop(daemon, sandbox)
                except grpc.RpcError:
                    if not args.force:
                        raise
                _shut_down(daemon, sandbox)
                daemon.sandbox_store.Delete(wire.StoreDeleteRequest(sandbox_id=id))
                show(id)
    failures.check()
