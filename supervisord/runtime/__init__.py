"""Tasks: bundles on disk, shims and the calls to them, recovery after a restart.

``manager.TaskManager`` is what others use (contracts.tasks). ``creation`` makes a task, ``burial``
removes what a dead shim left, ``recovery`` finds the shims again at boot, ``launch`` and
``foreign`` start shims, ``oci`` chooses the OCI runtime.
"""
