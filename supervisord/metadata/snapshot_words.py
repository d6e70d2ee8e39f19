"""Errors of a snapshotter in the words of the client, who knows nothing of the backend's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from supervisord.contracts.errors import Error


@contextmanager
def in_client_words(keys: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name the client's key where they named the backend's; ``keys`` is by
    backend key, without which nothing changes."""
    try:
        yield
    except Error as error:
        told = str(error)
        for backend, key in keys.items():
            if backend:
                told = told.replace(backend, key)
        if told == str(error):
            raise
        raise type(error)(told) from error
