"""Registers the fixtures of the wire tests."""

from __future__ import annotations

import pytest

from tests.conformance import fixtures


def pytest_addoption(parser: pytest.Parser) -> None:
    fixtures.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    fixtures.register(config)
