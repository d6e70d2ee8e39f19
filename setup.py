"""The one build step that pyproject.toml cannot express: the protocol stubs.

``pip install .``, ``pip install -e .`` and a wheel all run ``build_py``; the stubs are
generated beside their sources before it looks for modules, if they are missing or stale.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

GENERATOR = Path(__file__).resolve().parent / "protos" / "generate.py"


class BuildPy(build_py):
    """build_py, with current stubs, in editable installs too."""

    def run(self) -> None:
        generator = runpy.run_path(str(GENERATOR))
        if not generator["is_current"]():
            generator["generate"]()
        super().run()


setup(cmdclass={"build_py": BuildPy})
