"""Folders of hosts: for each registry one, found by its name, with ``hosts.toml`` or certificates.

Below a root the folder of ``HOST:PORT`` is ``HOST_PORT_``, else ``HOST:PORT``, else ``_default``.
Without ``hosts.toml`` it may have certificates as docker's ``certs.d`` has them: ``*.crt`` are
authorities, ``*.cert`` with ``*.key`` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from supervisord.contracts.errors import InvalidArgument

from . import file
from .defaults import complete, port_of
from .endpoint import Endpoint, Tls


def endpoints(registry: str, roots: Sequence[str] = (), scheme: str = "") -> list[Endpoint]:
    """Who is asked for a registry's images, in order; the first root that has a folder decides.

    ``scheme`` is for the registry itself where nothing else says it. Blocks (it reads files).
    Raises InvalidArgument, which names the file and the rule."""
    folder = _find(registry, roots)
    if folder is None:
        return [complete(registry, scheme)]
    listed = folder / "hosts.toml"
    try:
        if listed.exists() and listed.stat().st_size:
            return file.load(listed, registry, scheme)
        return [complete(registry, scheme, _certificates(folder))]
    except OSError as error:
        raise InvalidArgument(f"{error.filename or folder}: {error.strerror}") from error


def _find(registry: str, roots: Sequence[str]) -> Path | None:
    port = port_of(registry)
    flat = f"{registry.removesuffix(':' + port)}_{port}_" if port else registry
    for root in roots:
        for name in dict.fromkeys((flat, registry, "_default")):
            folder = Path(root) / name
            if folder.is_dir():
                return folder
    return None


def _certificates(folder: Path) -> Tls:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            pairs.append((str(folder / name), str(folder / (key if key in names else name))))
    authorities = (str(folder / name) for name in names if name.endswith(".crt"))
    return Tls(tuple(authorities), tuple(pairs))
