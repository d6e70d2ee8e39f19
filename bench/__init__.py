"""Measures this daemon beside containerd on the same machine, in the same run.

``./dev bench`` starts Debian's containerd and ours on temporary roots and runs every case on one
and then on the other, again and again, so that a ratio holds while the machine's speed drifts.
The tests never call this; it imports the generated stubs and nothing of the daemon.
"""
