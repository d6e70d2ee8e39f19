"""Creating a container: its snapshot, its spec, its record.

Called by ``run`` and ``containers create``. Each effect pushes its undo onto the caller's stack, so
that a command that fails later leaves neither snapshot nor record.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1.options_pb2 import Options
from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.types.types_pb2 import Mount

from . import activating, patience
from .connection import RUNTIME_LABEL, Connection
from .errors import CliError, is_code, rpc_text
from .images import blobs, manifests, media, unpack
from .mounting import mount_all, unmount_all
from .output import warn
from .spec import env, flags, mounts, rootfs
from .spec.defaults import ENV, Spec, default_spec
from .spec.users import Users, with_groups
from .values import labels_of, require

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"
LOG_LABEL = "supervisord.io/log-uri"
# Labels with these prefixes steer the daemon; an image must not set them on a container.
_RESERVED = ("containerd.io/", "io.containerd.", "io.cri-containerd")


def create_container(
    daemon: Connection, args: argparse.Namespace, undo: ExitStack
) -> containers_pb2.Container:
    """Creates what the flags describe and answers the record.

    Raises CliError for flags that cannot be met, an unknown image, or a taken id."""
    with daemon.lease():
        if args.config:
            container, spec = _from_config(args)
        elif args.rootfs:
            container, spec = _from_folder(daemon, args)
        else:
            container, spec = _from_image(daemon, args, undo)
        container.labels.update(labels_of(args.label))
        if getattr(args, "log_uri", None):
            container.labels[LOG_LABEL] = args.log_uri
        container.spec.CopyFrom(
            AnyMessage(type_url=SPEC_TYPE, value=json.dumps(spec, separators=(",", ":")).encode())
        )
        _runtime(daemon, args, container)
        request = containers_pb2.CreateContainerRequest(container=container)
        created = daemon.containers.Create(request).container
    undo.callback(remove_container, daemon, created.id)
    return created


def remove_container(daemon: Connection, id: str) -> None:
    """Deletes a record as an undo: a failure is told, not raised."""
    request = containers_pb2.DeleteContainerRequest(id=id)
    try:
        patience.delete(lambda: daemon.containers.Delete(request))
    except grpc.RpcError as error:
        warn(f"container {id} could not be removed: {rpc_text(error, daemon.address)}")


def remove_snapshot(daemon: Connection, snapshotter: str, key: str) -> None:
    """Removes a snapshot as an undo: a failure is told, not raised."""
    request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
    try:
        patience.delete(lambda: daemon.snapshots.Remove(request))
    except grpc.RpcError as error:
        warn(f"snapshot {key} could not be removed: {rpc_text(error, daemon.address)}")


def _from_config(args: argparse.Namespace) -> tuple[containers_pb2.Container, Spec]:
    try:
        spec = json.loads(Path(args.config).read_text())
    except (OSError, ValueError) as error:
        raise CliError(f"--config {args.config}: {error}") from None
    require(isinstance(spec, dict), f"--config {args.config}: not a JSON object")
    return containers_pb2.Container(id=args.id), spec


def _from_folder(
    daemon: Connection, args: argparse.Namespace
) -> tuple[containers_pb2.Container, Spec]:
    folder = Path(args.image).absolute()
    require(folder.is_dir(), f"--rootfs {args.image}: not a folder")
    spec = default_spec(daemon.namespace, args.id)
    spec["root"]["path"] = str(folder)
    spec["process"]["env"] = env.merge(ENV, flags.environment(args))
    spec["process"]["args"] = _command(args.args, [])
    mounts.apply(spec, args.mount)
    flags.apply(spec, args)
    users = Users(lambda path: rootfs.read_text([str(folder)], path))
    _set_user(spec, users, "", args.user)
    return containers_pb2.Container(id=args.id), spec


def _from_image(
    daemon: Connection, args: argparse.Namespace, undo: ExitStack
) -> tuple[containers_pb2.Container, Spec]:
    snapshotter = daemon.snapshotter(args.snapshotter)
    image = manifests.get_image(daemon, args.image)
    wanted = media.parse_platform(args.platform) if args.platform else media.here()
    manifest = manifests.select(daemon, manifests.target_of(image), wanted)
    top = unpack.ensure(daemon, manifest, snapshotter)
    whole = blobs.read_json(daemon, manifest.config.digest)
    config = whole.get("config") or {}
    require(isinstance(config, dict), f"image config {manifest.config.digest} is malformed")

    # Everything that can be refused is refused before the first effect.
    spec = default_spec(daemon.namespace, args.id)
    process = spec["process"]
    process["env"] = env.merge(_texts(config, "Env") or ENV, flags.environment(args))
    process["args"] = _command(args.args, _texts(config, "Entrypoint") + _texts(config, "Cmd"))
    process["cwd"] = _text(config, "WorkingDir") or "/"
    mounts.apply(spec, args.mount)
    flags.apply(spec, args)

    held = _prepare(daemon, args, snapshotter, top)
    undo.callback(remove_snapshot, daemon, snapshotter, args.id)
    with ExitStack() as stack:
        layers = _layers(daemon, held, stack)
        users = Users(lambda path: rootfs.read_text(layers, path))
        _set_user(spec, users, _text(config, "User"), args.user)
    labels = config.get("Labels") or {}
    container = containers_pb2.Container(
        id=args.id,
        image=image.name,
        snapshotter=snapshotter,
        snapshot_key=args.id,
        labels={
            **{
                key: value
                for key, value in labels.items()
                if isinstance(value, str) and not key.startswith(_RESERVED)
            },
            **image.labels,
            STOP_SIGNAL_LABEL: _text(config, "StopSignal") or "SIGTERM",
        },
    )
    return container, spec


def _prepare(
    daemon: Connection, args: argparse.Namespace, snapshotter: str, parent: str
) -> Sequence[Mount]:
    try:
        return daemon.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=snapshotter,
                key=args.id,
                parent=parent,
                labels=flags.snapshot_labels(args),
            )
        ).mounts
    except grpc.RpcError as error:
        if not is_code(error, "ALREADY_EXISTS"):
            raise
    try:
        daemon.containers.Get(containers_pb2.GetContainerRequest(id=args.id))
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise
        raise CliError(
            f'snapshot "{args.id}": already exists, without a container (sctl snapshots rm)'
        ) from None
    raise CliError(f'container "{args.id}": already exists')


def _layers(daemon: Connection, held: Sequence[Mount], stack: ExitStack) -> list[str]:
    """Where to read the root filesystem's files; a filesystem that sctl cannot read by itself is
    mounted for as long as the stack lives, by the daemon if it must be."""
    if activating.is_wanted(held):
        return [stack.enter_context(activating.mounted(daemon, held))]
    layers = rootfs.layers_of(held)
    if layers is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sctl-rootfs-"))
        mount_all(held, folder)
        stack.callback(unmount_all, folder)
        layers = [folder]
    return layers


def _set_user(spec: Spec, users: Users, from_image: str, from_flag: str | None) -> None:
    wanted = from_flag or from_image
    user = users.resolve(wanted) if wanted else {"uid": 0, "gid": 0}
    # Like containerd's clients: an image's user counts by its number, and no user is root.
    by_image = str(user["uid"]) if from_image else "root"
    name = from_flag.partition(":")[0] if from_flag else by_image
    spec["process"]["user"] = with_groups(user, users.supplementary(name))


def _command(given: Sequence[str], from_image: Sequence[str]) -> list[str]:
    """What is given replaces the image's entrypoint and command, as with ctr."""
    command = list(given) or list(from_image)
    require(command, "no command: the image names none, so give one after the ID")
    return command


def _texts(config: dict[str, Any], name: str) -> list[str]:
    value = config.get(name) or []
    require(
        isinstance(value, list) and all(isinstance(item, str) for item in value),
        f"the image config's {name} is not a list of text",
    )
    return list(value)


def _text(config: dict[str, Any], name: str) -> str:
    value = config.get(name) or ""
    require(isinstance(value, str), f"the image config's {name} is not text")
    return str(value)


def _runtime(
    daemon: Connection, args: argparse.Namespace, container: containers_pb2.Container
) -> None:
    name = args.runtime or daemon.defaults.get(RUNTIME_LABEL) or flags.RUNTIME
    container.runtime.name = name
    container.sandbox = args.sandbox
    if name == flags.RUNTIME:
        require(
            not args.runc_systemd_cgroup or args.cgroup,
            "--runc-systemd-cgroup needs --cgroup, such as machine.slice:prefix:name",
        )
        options = Options(
            binary_name=args.runc_binary,
            root=args.runc_root,
            systemd_cgroup=args.runc_systemd_cgroup,
        )
        container.runtime.options.CopyFrom(
            AnyMessage(type_url=Options.DESCRIPTOR.full_name, value=options.SerializeToString())
        )
    else:
        require(
            not (args.runc_binary or args.runc_root or args.runc_systemd_cgroup),
            f"the --runc flags are for {flags.RUNTIME} only",
        )
