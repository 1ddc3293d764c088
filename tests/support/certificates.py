"""Certificates for tests: an authority, and keys that it signed, by openssl."""

import subprocess
from pathlib import Path


class Authority:
    """An authority of its own folder: `file` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, folder / f"{name}-ca.key"
        self.file = folder / f"{name}-ca.pem"
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}",
                 "-keyout", self._key, "-out", self.file)  # fmt: skip

    def certify(self, name: str) -> tuple[Path, Path]:
        """Key and certificate (both PEM) of a program on this machine."""
        key, request, certificate = (self._folder / f"{name}{ending}" for ending in (".key", ".request", ".pem"))
        names = self._folder / f"{name}.names"
        names.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-CAcreateserial",
                 "-days", "30", "-extfile", names, "-out", certificate)  # fmt: skip
        return key, certificate


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
