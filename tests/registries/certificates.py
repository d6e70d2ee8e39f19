"""A certificate authority of a test's own, by ``openssl``."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Issues certificates below a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=test authority", "-keyout", str(self.key),
            "-out", str(self.certificate), "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, *more: str) -> tuple[Path, Path]:
        """A certificate for an IP address and for names, and its key."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        request, extra = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        names = ",".join([f"IP:{name}", *(f"DNS:{one}" for one in more)])
        extra.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate),
            "-CAkey", str(self.key), "-CAcreateserial", "-days", "2", "-extfile", str(extra),
            "-out", str(certificate),
        )  # fmt: skip
        return certificate, key


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def sign(key: Path, data: bytes) -> bytes:
    """An ECDSA signature over SHA-256, in DER."""
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key)],
        input=data,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
