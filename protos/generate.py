"""Generates the Python stubs of every .proto source below this folder.

Called by the package build (``setup.py``) and by ``./dev protos``. The stubs land beside
their sources and are not kept in git. Needs grpcio-tools, mypy-protobuf and
googleapis-common-protos, all of them build dependencies only.

The compiler derives Python imports from proto import paths, which start at this folder; the
stubs live in the Python package ``protos``, so their imports of each other are rewritten.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
STAMP = ROOT / ".stubs"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def sources(root: Path = ROOT) -> list[Path]:
    """All .proto files below ``root``, in a stable order."""
    return sorted(root.rglob("*.proto"))


def fingerprint(root: Path = ROOT) -> str:
    """A digest over this generator and every source: what a generated set belongs to."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sources(root):
        digest.update(f"\0{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(root: Path = ROOT) -> bool:
    """Whether the stubs beside the sources were generated from exactly these sources."""
    stamp = root / STAMP.name
    if not stamp.is_file() or stamp.read_text() != fingerprint(root):
        return False
    return all(path.with_name(f"{path.stem}_pb2.py").is_file() for path in sources(root))


def include_paths(root: Path = ROOT) -> list[str]:
    """Folders that proto imports start from: ours, protobuf's own, and google.rpc's."""
    found = [str(root)]
    tools = importlib.util.find_spec("grpc_tools")
    rpc = importlib.util.find_spec("google.rpc")
    if tools is None or tools.origin is None or rpc is None or not rpc.submodule_search_locations:
        raise RuntimeError("generating stubs needs grpcio-tools and googleapis-common-protos")
    found.append(str(Path(tools.origin).parent / "_proto"))
    found.append(str(Path(next(iter(rpc.submodule_search_locations))).parents[1]))
    return found


def clean(root: Path = ROOT) -> None:
    """Removes every generated file, so that a source that went away leaves no stub."""
    for pattern in GENERATED:
        for path in root.rglob(pattern):
            path.unlink()
    (root / STAMP.name).unlink(missing_ok=True)


def _rewrite(path: Path, packages: tuple[str, ...]) -> None:
    """Makes the imports of one generated file start at the ``protos`` package."""
    names = "|".join(packages)
    text = path.read_text()
    text = re.sub(rf"^from ({names})(\.|\s)", r"from protos.\1\2", text, flags=re.M)
    text = re.sub(rf"^import ({names})\.", r"import protos.\1.", text, flags=re.M)
    if path.suffix == ".pyi":
        text = re.sub(rf"(?<![\w.\"'])({names})((?:\.\w+)*\.\w+_pb2)\b", r"protos.\1\2", text)
    path.write_text(text)


def _has_service(path: Path) -> bool:
    return re.search(r"^service\s", path.read_text(), flags=re.M) is not None


def generate(root: Path = ROOT) -> int:
    """Generates all stubs and returns how many sources there were.

    Raises RuntimeError if a source does not compile.
    """
    from grpc_tools import protoc

    clean(root)
    found = sources(root)
    includes = [f"-I{path}" for path in include_paths(root)]
    base = ["protoc", *includes, f"--python_out={root}", f"--mypy_out=quiet:{root}"]
    scripts = os.pathsep.join((sysconfig.get_path("scripts"), str(Path(sys.executable).parent)))
    os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    if protoc.main([*base, *map(str, found)]) != 0:
        raise RuntimeError("the .proto sources do not compile")
    served = [str(path) for path in found if _has_service(path)]
    grpc = [f"--grpc_python_out={root}", f"--mypy_grpc_out=quiet:{root}"]
    if protoc.main(["protoc", *includes, *grpc, *served]) != 0:
        raise RuntimeError("the services of the .proto sources do not compile")
    packages = tuple(sorted({path.relative_to(root).parts[0] for path in found}))
    for pattern in GENERATED:
        for path in root.rglob(pattern):
            _rewrite(path, packages)
    (root / STAMP.name).write_text(fingerprint(root))
    return len(found)


if __name__ == "__main__":
    if "--if-stale" in sys.argv[1:] and is_current():
        sys.exit(0)
    sys.stdout.write(f"generated stubs of {generate()} .proto files\n")
