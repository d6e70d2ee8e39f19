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
import tempfile
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


def generated(root: Path = ROOT) -> set[Path]:
    """The stubs that lie below ``root``, relative to it."""
    return {path.relative_to(root) for pattern in GENERATED for path in root.rglob(pattern)}


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


def render(target: Path, root: Path = ROOT) -> int:
    """Writes the stubs of all sources below ``root`` to ``target``; answers how many sources.

    Raises RuntimeError if a source does not compile.
    """
    from grpc_tools import protoc

    found = sources(root)
    includes = [f"-I{path}" for path in include_paths(root)]
    scripts = os.pathsep.join((sysconfig.get_path("scripts"), str(Path(sys.executable).parent)))
    os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    messages = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    if protoc.main(["protoc", *includes, *messages, *map(str, found)]) != 0:
        raise RuntimeError("the .proto sources do not compile")
    services = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
    served = [str(path) for path in found if _has_service(path)]
    if served and protoc.main(["protoc", *includes, *services, *served]) != 0:
        raise RuntimeError("the services of the .proto sources do not compile")
    packages = tuple(sorted({path.relative_to(root).parts[0] for path in found}))
    for name in generated(target):
        _rewrite(target / name, packages)
    return len(found)


def differing(root: Path = ROOT) -> list[Path]:
    """Stubs that are missing, left over, or not what the sources generate now."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        render(fresh, root)
        return sorted(
            name
            for name in generated(fresh) | generated(root)
            if not (root / name).is_file()
            or not (fresh / name).is_file()
            or (root / name).read_bytes() != (fresh / name).read_bytes()
        )


def generate(root: Path = ROOT) -> int:
    """Brings all stubs up to date and answers how many sources there are.

    Each file is replaced as a whole and only where it changed, so that a process that imports
    the stubs meanwhile is not disturbed. Raises RuntimeError if a source does not compile.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".stubs-") as scratch:
        fresh = Path(scratch)
        count = render(fresh, root)
        wanted = generated(fresh)
        for name in wanted:
            stub = root / name
            if not stub.is_file() or stub.read_bytes() != (fresh / name).read_bytes():
                (fresh / name).replace(stub)
        for name in generated(root) - wanted:
            if not name.parts[0].startswith(".stubs-"):
                (root / name).unlink()
    (root / STAMP.name).write_text(fingerprint(root))
    return count


def main(arguments: list[str]) -> int:
    """``--check`` only compares; ``--if-stale`` returns at once when nothing changed."""
    if "--check" in arguments:
        stale = differing()
        for name in stale:
            sys.stderr.write(f"protos/{name} is not what its source generates\n")
        return 1 if stale else 0
    if "--if-stale" not in arguments or not is_current():
        sys.stdout.write(f"generated stubs of {generate()} .proto files\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
