"""Keys of containerd's configuration that have no meaning here: a file written for containerd is
read as it is, and what is passed over is told.

``daemon.config`` asks before it calls a key unknown. Only names that containerd documents are
listed, so that a slip of the pen is still an error.
"""

from __future__ import annotations

from collections.abc import Mapping

SECTIONS: Mapping[str, str] = {
    "temp": "temporary files lie below root, beside what they become",
    "plugin_dir": "plugins are Python packages with an entry point",
    "cgroup": "the daemon stays in the cgroup in which it was started",
    "timeouts": "each wait has its own deadline",
    "grpc.tcp_address": "clients are served on the unix socket only",
    "grpc.tcp_tls_ca": "clients are served on the unix socket only",
    "grpc.tcp_tls_cert": "clients are served on the unix socket only",
    "grpc.tcp_tls_key": "clients are served on the unix socket only",
    "grpc.tcp_tls_common_name": "clients are served on the unix socket only",
    "debug.address": "there is no debug socket; SIGUSR1 writes all stacks to the log",
    "debug.uid": "there is no debug socket",
    "debug.gid": "there is no debug socket",
    "debug.log_trace_id": "there is no tracing",
}
"""Sections and keys, each with what holds instead."""

PLUGINS: Mapping[str, str] = {
    "io.containerd.grpc.v1.cri": "there is no CRI service yet",
    "io.containerd.cri.v1.images": "there is no CRI service yet",
    "io.containerd.cri.v1.runtime": "there is no CRI service yet",
    "io.containerd.nri.v1.nri": "there is no NRI",
    "io.containerd.internal.v1.opt": "there is no managed /opt folder",
    "io.containerd.internal.v1.restart": "nothing is restarted by the daemon",
    "io.containerd.internal.v1.tracing": "there is no tracing",
    "io.containerd.tracing.processor.v1.otlp": "there is no tracing",
    "io.containerd.monitor.v1.cgroups": "metrics follow [metrics]",
    "io.containerd.monitor.task.v1.cgroups": "metrics follow [metrics]",
    "io.containerd.monitor.container.v1.restart": "nothing is restarted by the daemon",
    "io.containerd.runtime.v1.linux": "shims of the first generation are not driven",
    "io.containerd.podsandbox.controller.v1.podsandbox": "there is no CRI service yet",
    **{
        f"io.containerd.snapshotter.v1.{name}": "there is no such snapshotter"
        for name in ("aufs", "blockfile", "devmapper", "zfs")
    },
    **{
        f"io.containerd.server.v1.{name}": "addresses are set in the sections of their own"
        for name in ("debug", "grpc", "grpc-tcp", "metrics", "ttrpc")
    },
}
"""Plugins by uri, each with why its table has no effect."""

PLUGIN_KEYS: Mapping[str, str] = {
    "io.containerd.differ.v1.erofs.enable_tar_index": "the snapshotter makes images at commit",
    "io.containerd.differ.v1.erofs.mkfs_options": "the snapshotter makes images at commit",
    "io.containerd.snapshotter.v1.erofs.layer_content_caches": "images lie in snapshots",
    "io.containerd.metadata.v1.sqlite.no_sync": "what a client was told is on the disk",
    "io.containerd.runtime.v2.task.platforms": "containers are of this machine's platform",
    "io.containerd.runtime.v2.task.socket_dir": "sockets of shims lie below state",
    "io.containerd.service.v1.tasks-service.blockio_config_file": "no block I/O classes are set",
    "io.containerd.transfer.v1.local.check_platform_supported": "every platform is unpacked",
    "io.containerd.transfer.v1.local.concurrent_layer_fetch_buffer": "max_ranges_per_layer says "
    "how many parts of a layer are downloaded at a time",
    "io.containerd.transfer.v1.local.unpack_config": "every snapshotter is unpacked into",
    "io.containerd.service.v1.tasks-service.rdt_config_file": "no RDT classes are set",
}
"""Keys of plugins that do exist here."""

ALIASES: Mapping[str, str] = {
    "io.containerd.mount-manager.v1.bolt": "io.containerd.mount-manager.v1.sqlite",
    "io.containerd.metadata.v1.bolt": "io.containerd.metadata.v1.sqlite",
    "io.containerd.shim.v1.manager": "io.containerd.runtime.v2.task",
}
"""Plugins that go by another name here."""


MOVED: Mapping[str, tuple[str, str]] = {
    "stream_processors": ("io.containerd.differ.v1.walking", "stream_processors"),
}
"""Sections that are keys of a plugin here: its uri and the key."""
