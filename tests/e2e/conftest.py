"""Fixtures of the end-to-end tests: the daemons of the wire tests, and ``sctl`` to drive them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance import fixtures
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon
from tests.conformance.fixtures import Shop


def pytest_addoption(parser: pytest.Parser) -> None:
    fixtures.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    fixtures.register(config)


collect_ignore = ["vm/inside"]  # they run in the machine


class Sctl(Ctr):
    """``sctl``, driven as ``ctr`` is."""

    def command(self, *arguments: str) -> list[str]:
        where = ["--address", self.address, "--namespace", self.namespace]
        return [sys.executable, "-m", "supervisord.cli.main", *where, *arguments]


@dataclass(frozen=True)
class Stand:
    """``sctl`` in a namespace where the busybox image is unpacked."""

    sctl: Sctl
    shop: Shop

    @property
    def image(self) -> str:
        return self.shop.image

    def run(self, *words: str) -> list[str]:
        """The words of an attached run of busybox that removes its container."""
        return ["run", "--rm", self.image, *words]


@pytest.fixture
def sctl(daemon: Daemon, namespace: str) -> Sctl:
    """``sctl`` in a namespace of its own."""
    return Sctl(daemon.address, namespace)


@pytest.fixture
def stand(shop: Shop) -> Iterator[Stand]:
    """``sctl`` where there is something to run."""
    yield Stand(Sctl(shop.ctr.address, shop.namespace), shop)
