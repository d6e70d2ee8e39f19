"""supervisord.check.v1: checks of what is stored, and backups. A service of our own."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from protos.supervisord.check.v1 import check_pb2 as pb
from supervisord.contracts.checks import Checker, CopiedDatabase, Finding, Options, Report
from supervisord.contracts.identifiers import check_identifier

from .call import Call

INDEX = "backup.json"
FORMAT = 1

_CHUNK = 1 << 20


def to_wire(report: Report) -> pb.RunResponse:
    """A report as clients get it."""
    if isinstance(report, Finding):
        return pb.RunResponse(
            finding=pb.Finding(
                kind=report.kind,
                namespace=report.namespace,
                key=report.key,
                problem=report.problem,
                detail=report.detail,
                remedy=report.remedy,
                repaired=report.repaired,
            )
        )
    return pb.RunResponse(
        progress=pb.Progress(
            part=report.part, done=report.done, total=report.total, size=report.size
        )
    )


async def summed_up(reports: AsyncIterator[Report]) -> AsyncIterator[pb.RunResponse]:
    """All reports, and the summary at their end."""
    findings = repaired = 0
    async for report in reports:
        if isinstance(report, Finding):
            findings += 1
            repaired += report.repaired
        yield to_wire(report)
    yield pb.RunResponse(summary=pb.Summary(findings=findings, repaired=repaired))


class CheckService:
    """``root`` is the daemon's, to which the paths in a backup are relative; ``checker`` is asked
    for at each call, since most daemons never see one."""

    def __init__(self, checker: Callable[[], Checker], root: str) -> None:
        self._checker = checker
        self._root = Path(root)

    async def run(self, call: Call, request: pb.RunRequest) -> AsyncIterator[pb.RunResponse]:
        namespace = request.namespace or "default"
        check_identifier(namespace, "namespace")
        options = Options(request.quick, request.repair, namespace)
        async for message in summed_up(self._checker().check(options)):
            yield message

    async def backup(
        self, call: Call, request: pb.BackupRequest
    ) -> AsyncIterator[pb.BackupResponse]:
        import tempfile

        # On the disk of the databases: there is room for them, and nobody else reads it.
        folder = await asyncio.to_thread(tempfile.TemporaryDirectory, ".backup", None, self._root)
        try:
            copies = await self._checker().backup(Path(folder.name))
            made = await asyncio.to_thread(self._packed, Path(folder.name), copies)
            with made.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield pb.BackupResponse(data=data)
        finally:
            await asyncio.to_thread(folder.cleanup)

    def _packed(self, folder: Path, copies: Sequence[CopiedDatabase]) -> Path:
        """All copies and a description of them as one tar."""
        import tarfile

        members = [
            {"name": copied.copy.name, "path": self._relative(copied.path)} for copied in copies
        ]
        index = {"format": FORMAT, "time": int(time.time()), "databases": members}
        data = json.dumps(index, indent=2).encode()
        target = folder / "backup.tar"
        with tarfile.open(target, "w") as tar:
            header = tarfile.TarInfo(INDEX)
            header.size, header.mtime, header.mode = len(data), int(time.time()), 0o600
            tar.addfile(header, io.BytesIO(data))
            for copied in copies:
                tar.add(copied.copy, copied.copy.name)
                copied.copy.unlink()
        return target

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)
