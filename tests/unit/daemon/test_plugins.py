"""The graph of plugins: order, refusals, failures that stay local, closing in reverse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from supervisord.contracts.errors import FailedPrecondition, NotFound
from supervisord.contracts.plugins import PluginContext, Registration, SkipPlugin, State
from supervisord.daemon.plugins import Graph, GraphError, ordered

Start = Callable[[PluginContext], Awaitable[Any]]


async def _nothing(context: PluginContext) -> Any:
    return object()


def _one(type: str, id: str, requires: Sequence[str] = (), start: Start = _nothing) -> Registration:
    return Registration(type, id, start, requires)


def _graph(*registrations: Registration, **options: Any) -> Graph:
    paths = {"root": "/r", "state": "/s", "address": "/a.sock", "ttrpc_address": "/a.sock.ttrpc"}
    return Graph(registrations, config=options.pop("config", {}), **paths, **options)


def _uris(registrations: Sequence[Registration]) -> list[str]:
    return [registration.uri for registration in registrations]


def test_what_is_required_comes_first_and_else_the_order_is_kept() -> None:
    registrations = [
        _one("z", "all", ["*"]),
        _one("c", "1", ["b"]),
        _one("a", "1"),
        _one("b", "1", ["a"]),
        _one("b", "2"),
    ]
    assert _uris(ordered(registrations)) == ["a.1", "b.1", "b.2", "c.1", "z.all"]


def test_disabled_by_uri_or_by_type() -> None:
    registrations = [_one("a", "1"), _one("a", "2"), _one("b", "1")]
    assert _uris(ordered(registrations, ["a.1", "b"])) == ["a.2"]


def test_a_duplicate_is_refused() -> None:
    with pytest.raises(GraphError, match=r"a\.1 is registered twice"):
        ordered([_one("a", "1"), _one("a", "1")])


def test_a_cycle_is_refused_and_named() -> None:
    registrations = [_one("a", "1", ["b"]), _one("b", "1", ["c"]), _one("c", "1", ["a"])]
    with pytest.raises(GraphError, match=r"a\.1 -> b\.1 -> c\.1 -> a\.1"):
        ordered(registrations)


def test_a_plugin_cannot_require_its_own_type() -> None:
    with pytest.raises(GraphError, match=r"a\.1 -> a\.1"):
        ordered([_one("a", "1", ["a"])])


async def test_a_plugin_gets_its_folders_config_and_predecessors() -> None:
    seen: dict[str, Any] = {}

    async def first(context: PluginContext) -> Any:
        return "first"

    async def second(context: PluginContext) -> Any:
        seen["root"], seen["state"] = context.root, context.state
        seen["config"] = dict(context.config)
        seen["got"] = context.get("a"), context.get("a", "1"), dict(context.all("a"))
        context.export("root", context.root)
        context.capability("one", "two")
        return "second"

    graph = _graph(
        Registration("b", "1", second, ["a"], {"depth": 1, "kept": "x"}),
        _one("a", "1", start=first),
        config={"b.1": {"depth": 2}},
    )
    await graph.start()
    assert seen == {
        "root": "/r/b.1",
        "state": "/s/b.1",
        "config": {"depth": 2, "kept": "x"},
        "got": ("first", "first", {"1": "first"}),
    }
    [_, status] = graph.statuses()
    assert (status.exports, status.capabilities) == ({"root": "/r/b.1"}, ("one", "two"))
    await graph.close()


async def test_failed_and_skipped_plugins_are_told_apart_and_the_rest_goes_on() -> None:
    async def fails(context: PluginContext) -> Any:
        raise ValueError("no such thing")

    async def skips(context: PluginContext) -> Any:
        raise SkipPlugin("no btrfs here")

    async def depends(context: PluginContext) -> Any:
        return context.get("bad")

    graph = _graph(
        _one("bad", "1", start=fails),
        _one("skip", "1", start=skips),
        _one("user", "1", ["bad"], depends),
        _one("fine", "1"),
    )
    await graph.start()
    found = {status.type: (status.state, status.reason) for status in graph.statuses()}
    assert found["bad"] == (State.FAILED, "no such thing")
    assert found["skip"] == (State.SKIPPED, "no btrfs here")
    assert found["user"] == (State.FAILED, "no plugin of type bad: bad.1: no such thing")
    assert found["fine"] == (State.OK, "")
    with pytest.raises(FailedPrecondition, match="no such thing"):
        graph.instance("bad", "1")
    with pytest.raises(NotFound):
        graph.instance("none", "1")
    await graph.close()


async def test_a_required_plugin_that_fails_is_fatal() -> None:
    async def fails(context: PluginContext) -> Any:
        raise ValueError("broken")

    graph = _graph(_one("bad", "1", start=fails), required=["bad.1"])
    with pytest.raises(GraphError, match=r"required plugin bad\.1 did not start: broken"):
        await graph.start()
    with pytest.raises(GraphError, match=r"required plugin x\.y is not there"):
        _graph(required=["x.y"])
    with pytest.raises(GraphError, match=r"required plugin a\.1 is not there"):
        _graph(_one("a", "1"), required=["a.1"], disabled=["a"])


async def test_closing_goes_in_reverse_and_one_failure_skips_no_other() -> None:
    closed: list[str] = []

    def opening(name: str, *, fails: bool = False) -> Start:
        async def start(context: PluginContext) -> Any:
            async def close() -> None:
                closed.append(name)
                if fails:
                    raise RuntimeError("cannot close")

            context.on_close(close)
            return name

        return start

    graph = _graph(
        _one("a", "1", start=opening("first")),
        _one("b", "1", start=opening("second", fails=True)),
        _one("c", "1", start=opening("third")),
    )
    await graph.start()
    await graph.close()
    assert closed == ["third", "second", "first"]


async def test_what_a_failed_plugin_had_opened_is_closed_too() -> None:
    closed: list[str] = []

    async def half(context: PluginContext) -> Any:
        async def close() -> None:
            closed.append("half")

        context.on_close(close)
        raise ValueError("then it failed")

    graph = _graph(_one("a", "1", start=half))
    await graph.start()
    await graph.close()
    assert closed == ["half"]
