"""Transfers do not start without what they are configured to ask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisord.contracts.plugins import PluginStatus, State
from supervisord.daemon import parts_images


@pytest.mark.parametrize("state", [State.FAILED, State.SKIPPED])
async def test_a_verifier_that_did_not_start_is_no_way_around(state: State) -> None:
    """Without it images would be pulled that nobody has judged."""
    (start,) = [one.start for one in parts_images.REGISTRATIONS if one.id == "local"]
    status = PluginStatus(parts_images.VERIFIER, "signatures", (), state, "no keys")
    context = SimpleNamespace(plugins=SimpleNamespace(statuses=lambda: [status]))
    with pytest.raises(ValueError, match="image verifier signatures did not start: no keys"):
        await start(cast(Any, context))
