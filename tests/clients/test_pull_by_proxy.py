"""A daemon whose environment names a proxy pulls and pushes through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.transferring import Mover
from tests.conformance import sweep
from tests.conformance.daemons import running
from tests.conformance.ocitar import Member, build
from tests.conformance.wire import Wire
from tests.registries.forward import ForwardProxy
from tests.registries.server import fill, needed, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]


def test_a_registry_that_the_proxy_alone_knows(tmp_path: Path) -> None:
    image = build([[Member("a", b"by proxy")]])
    with server(tmp_path) as registry:
        fill(registry, image.write(tmp_path / "image.tar", "x:1"), "app:1")
        proxy = ForwardProxy({"registry.test": registry.address})
        environment = {"HTTP_PROXY": proxy.address, "NO_PROXY": "direct.test"}
        with proxy.serving(), running("supervisord", environment=environment) as daemon:
            wire = Wire(daemon.address, "proxied", ours=True)
            try:
                Mover(wire).pull("registry.test/app:1", resolver={"default_scheme": "http"})
                assert {method for method, _ in proxy.seen} == {"HEAD", "GET"}
                proxy.seen.clear()
                with pytest.raises(Exception, match=r"direct\.test"):
                    Mover(wire).pull("direct.test/app:1", resolver={"default_scheme": "http"})
                assert proxy.seen == []
            finally:
                sweep.namespace(wire)
                wire.close()
