"""``./dev fuzz [TARGET] [OPTION OF LIBFUZZER ...]``: runs one target, or each for a minute.

New inputs that reach more code go to ``tests/fuzz/found/TARGET`` (not in git); one that fails lies
in the working folder as ``crash-*`` and belongs into ``tests/fuzz/corpus/TARGET``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    """Answers 1 when an input failed."""
    name, *options = sys.argv[1:] or [""]
    if name.startswith("-") or not name:
        from tests.fuzz.targets import TARGETS

        options = [name, *options] if name else ["-max_total_time=60"]
        command = [sys.executable, "-m", "tests.fuzz"]
        return max(subprocess.run([*command, each, *options]).returncode for each in TARGETS)
    import atheris

    with atheris.instrument_imports(include=["shims"]):
        from tests.fuzz import seeds
        from tests.fuzz.targets import TARGETS
    if name not in TARGETS:
        sys.stderr.write(f"fuzz: there is no target {name}; there are {', '.join(TARGETS)}\n")
        return 2
    found = FOLDER / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds.of(name)):
        (found / f"seed-{number}").write_bytes(seed)
    corpus = FOLDER / "corpus" / name
    corpus.mkdir(exist_ok=True)
    folders = [str(found), str(corpus)]
    atheris.Setup([sys.argv[0], *options, *folders], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
