"""gRPC's poller, a thread with its descriptors, is started once for all tests here."""

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

    with lasting():
        asyncio.run(start())
    yield
