"""Memory offered for merging: what is marked, who inherits it, and the switch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from supervisord.linux import merging

pytestmark = pytest.mark.skipif(
    not Path(merging.SWITCH).exists(), reason="this kernel knows no merging"
)

_OFFERS = """
import os, sys
from supervisord.linux import merging
def marked():
    return sum(line.startswith('VmFlags:') and ' mg' in line for line in open('/proc/self/smaps'))
assert marked() == 0
assert merging.offer() > 1 << 20
if sys.argv[1] == 'exec':
    os.execv('/bin/grep', ['grep', '-c', '^VmFlags:.* mg', '/proc/self/smaps'])
elif os.fork() == 0:
    print(marked(), flush=True)
else:
    os.wait()
"""


@pytest.mark.parametrize(("who", "inherits"), [("fork", True), ("exec", False)])
def test_an_offer_is_inherited_by_a_fork_only(who: str, inherits: bool) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _OFFERS, who], capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    assert (int(ended.stdout) > 0) is inherits


@pytest.mark.parametrize(("before", "switched"), [("0\n", True), ("2\n", True), ("1\n", False)])
def test_the_switch(tmp_path: Path, before: str, switched: bool) -> None:
    switch = tmp_path / "run"
    switch.write_text(before)
    assert merging.switch_on(str(switch)) is switched
    assert switch.read_text().strip() == "1"
