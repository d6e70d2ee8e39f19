"""gRPC's threads, with their descriptors, are started once for all tests of a package whose
conftest imports this fixture, and kept: they end with the last object of gRPC, which takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import grpc
import pytest


@pytest.fixture(scope="package", autouse=True)
def poller(lasting: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    async def start() -> None:
        grpc.aio.init_grpc_aio()
        server = grpc.aio.server()  # the first of a process takes long
        await server.start()
        await server.stop(0)

    with lasting():
        asyncio.run(start())
        kept = grpc.insecure_channel("unix:/nonexistent")
    yield
    kept.close()
