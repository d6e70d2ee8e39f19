"""The content folder: ``blobs/<algorithm>/<hex>`` and ``ingest/<number>``.

Owns the files and the order in which they become durable; knows no namespaces and no rows. A blob
appears by a hard link from its ingest, so that the ingest is whole until the row is written, and a
crash in between loses nothing. Every method blocks on the disk: call them in a thread. Used by the
metadata room's content store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from supervisord.linux.durable import make_folder, sync_folder

_NUMBER = re.compile(r"[0-9]{1,18}\Z")
_HEX = re.compile(r"[a-f0-9]+\Z")
_SPARE = ".link"
_ALGORITHMS = ("sha256", "sha384", "sha512")


class BlobFiles:
    """The files below one root, which is made if need be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._ingests = root / "ingest"
        make_folder(self._ingests)
        for algorithm in _ALGORITHMS:
            (self._blobs / algorithm).mkdir(parents=True, exist_ok=True)
        for folder in (self._blobs, root):
            sync_folder(folder)
        for left in self._ingests.glob(f"*{_SPARE}"):
            left.unlink()

    def blob_path(self, digest: str) -> Path:
        """Where a blob is; ``digest`` is checked already."""
        algorithm, _, encoded = digest.partition(":")
        return self._blobs / algorithm / encoded

    def ingest_path(self, number: int) -> Path:
        """Where the bytes of an ingest are."""
        return self._ingests / str(number)

    def blob_size(self, digest: str) -> int | None:
        """None if there is no such file."""
        try:
            return self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def ingest_stat(self, number: int) -> tuple[int, int]:
        """Size, and time of the last write in nanoseconds; zeros if there is no file yet."""
        try:
            found = self.ingest_path(number).stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def publish(self, number: int, digest: str, size: int) -> bool:
        """Makes the synced bytes of an ingest a blob, durably; the ingest stays too.

        Whether the blob is new. One that is here already is replaced all the same: these bytes
        are verified just now, those may have been damaged since. Raises OSError."""
        source, target = self.ingest_path(number), self.blob_path(digest)
        try:
            target.hardlink_to(source)
            new = True
        except FileExistsError:
            new = target.stat().st_size != size
            spare = source.with_suffix(_SPARE)
            spare.unlink(missing_ok=True)
            spare.hardlink_to(source)
            spare.rename(target)
        sync_folder(target.parent)
        return new

    def finish(self, number: int, digest: str) -> None:
        """After the row is written: drops the ingest, and makes the blob read-only."""
        self.remove_ingest(number)
        with contextlib.suppress(FileNotFoundError):  # deleted already
            self.blob_path(digest).chmod(0o444)

    def actual_digest(self, digest: str) -> str:
        """The digest of the bytes that a blob has. Raises OSError."""
        algorithm = digest.partition(":")[0]
        with self.blob_path(digest).open("rb", buffering=0) as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"

    def quarantine(self, digest: str) -> None:
        """Moves a damaged blob out of the way, durably, for somebody to look at. Raises OSError."""
        folder = self.root / "quarantine"
        folder.mkdir(mode=0o700, exist_ok=True)
        source = self.blob_path(digest)
        source.rename(folder / digest.replace(":", "-"))
        for changed in (self.root, folder, source.parent):
            sync_folder(changed)

    def remove_blob(self, digest: str) -> None:
        """Removes a blob if it is there."""
        self.blob_path(digest).unlink(missing_ok=True)

    def remove_ingest(self, number: int) -> None:
        """Removes an ingest if it is there."""
        self.ingest_path(number).unlink(missing_ok=True)

    def has_blobs(self) -> bool:
        """Whether there is any blob."""
        return next(self.all_blobs(), None) is not None

    def all_blobs(self) -> Iterator[str]:
        """The digests of all blobs on the disk."""
        for algorithm in _ALGORITHMS:
            with os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    if _HEX.match(entry.name):
                        yield f"{algorithm}:{entry.name}"

    def all_ingests(self) -> Iterator[int]:
        """The numbers of all ingests on the disk."""
        with os.scandir(self._ingests) as entries:
            for entry in entries:
                if _NUMBER.match(entry.name):
                    yield int(entry.name)
