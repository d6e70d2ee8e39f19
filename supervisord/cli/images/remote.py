"""``sctl images tags`` and ``referrers``: what a registry has, without moving anything."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..arguments import Noun, format_flag
from ..connection import connect
from ..output import human_bytes, listing, show, show_json
from . import registries


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("tags", tags, "list the tags of a repository in its registry")
    verb.add_argument("repository", metavar="REPOSITORY", help="such as alpine or ghcr.io/me/app")
    registries.registry_flags(verb)
    format_flag(verb)

    verb = noun.verb(
        "referrers", referrers, "list what refers to an image in its registry: signatures and such"
    )
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--artifact-type", default="", metavar="TYPE", help="only of this type")
    registries.registry_flags(verb)
    format_flag(verb)


def tags(args: argparse.Namespace) -> None:
    """Prints a tag a line, as they come."""
    from protos.supervisord.registries.v1.registries_pb2 import TagsRequest

    from . import references

    name = references.repository(args.repository, default=os.environ.get("SCTL_REGISTRY", ""))
    with _asking(args, name) as (stub, registry):
        found: list[str] = []
        for page in stub.Tags(TagsRequest(registry=registry)):
            if args.format == "json":
                found.extend(page.tags)
            else:
                for tag in page.tags:
                    show(tag)
    if args.format == "json":
        show_json(found)


def referrers(args: argparse.Namespace) -> None:
    """Prints manifests whose subject an image is."""
    from protos.supervisord.registries.v1.registries_pb2 import ReferrersRequest

    from . import references

    name = references.normalize(args.image, default=os.environ.get("SCTL_REGISTRY", ""))
    with _asking(args, name) as (stub, registry):
        request = ReferrersRequest(registry=registry, artifact_type=args.artifact_type)
        answer = stub.Referrers(request)
    records = [
        {
            "artifact_type": one.artifact_type,
            "media_type": one.media_type,
            "digest": one.digest,
            "size": one.size if args.format == "json" else human_bytes(one.size),
            "annotations": dict(one.annotations),
        }
        for one in answer.referrers
    ]
    columns = [
        ("ARTIFACT TYPE", "artifact_type"),
        ("DIGEST", "digest"),
        ("SIZE", "size"),
        ("ANNOTATIONS", "annotations"),
    ]
    if args.format == "json":
        show_json({"subject": answer.subject, "referrers": records})
    else:
        listing(records, columns)


@contextmanager
def _asking(args: argparse.Namespace, name: str) -> Iterator[tuple[Any, Any]]:
    """The service, and the registry as the user wants it asked."""
    from protos.containerd.types.transfer.transfer_pb2 import OCIRegistry
    from protos.supervisord.registries.v1.registries_pb2_grpc import RegistriesStub

    with connect(args) as daemon, ExitStack() as stack:
        resolver = registries.resolver(args, daemon, stack)
        yield RegistriesStub(daemon.channel), OCIRegistry(reference=name, resolver=resolver)
