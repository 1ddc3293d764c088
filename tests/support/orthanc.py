"""An Orthanc in a network namespace of its own: a PACS that speaks DICOM and DICOMweb, for tests.

Orthanc 1.10 listens for DICOM on all addresses, hence the namespace. A test talks to it inside `namespace.entered()`,
or starts a command with `namespace.words` before it.
"""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.debian import need
from tests.support.namespaces import Namespace, namespace

HTTP_PORT, DICOM_PORT, AE_TITLE = 8042, 4242, "ORTHANC"
USER, PASSWORD = "archive", "orthanc-secret"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


class Orthanc:
    """One Orthanc with its storage, which outlives `stop` and `start`."""

    def __init__(self, inside: Namespace, home: Path, options: Mapping[str, Any]) -> None:
        self.namespace, self.home = inside, home
        self.dicomweb = f"http://127.0.0.1:{HTTP_PORT}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None
        (home / "orthanc.json").write_text(json.dumps(_configuration(home) | dict(options)))

    def start(self) -> None:
        """Start, or start again, and return once it answers; nothing where it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        with (self.home / "log").open("ab") as log:
            command = [*self.namespace.words, "Orthanc", str(self.home / "orthanc.json")]
            self._process = subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.home / "log").read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, "Orthanc does not answer"
            time.sleep(0.1)

    def stop(self, *, at_once: bool = False) -> None:
        """End it, which takes some seconds; `at_once` kills it instead."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        try:
            self.get("/system")
        except httpx.TransportError:
            return False
        return True

    def get(self, path: str, **parameters: Any) -> Any:
        """Its REST API's answer to a GET."""
        with self.namespace.entered(), self._client() as client:
            return client.get(path, params=parameters).raise_for_status().json()

    def upload(self, paths: Iterable[Path]) -> None:
        """Store DICOM files, by its REST API."""
        with self.namespace.entered(), self._client() as client:
            for path in paths:
                client.post("/instances", content=path.read_bytes()).raise_for_status()

    def empty(self) -> None:
        """Forget every study and every change."""
        with self.namespace.entered(), self._client() as client:
            for study in client.get("/studies").raise_for_status().json():
                client.delete(f"/studies/{study}").raise_for_status()
            client.delete("/changes").raise_for_status()

    def instances(self, **tags: str) -> list[dict[str, Any]]:
        """Its instances with these tags (exact, or with DICOM's wildcards), each with its main tags."""
        query = {"Level": "Instance", "Query": tags, "Expand": True}
        with self.namespace.entered(), self._client() as client:
            found: list[dict[str, Any]] = client.post("/tools/find", json=query).raise_for_status().json()
        return found

    def file(self, instance: str) -> bytes:
        """The DICOM file of an instance, by Orthanc's own identifier."""
        with self.namespace.entered(), self._client() as client:
            return client.get(f"/instances/{instance}/file").raise_for_status().content

    def _client(self) -> httpx.Client:
        address = f"http://127.0.0.1:{HTTP_PORT}"
        return httpx.Client(base_url=address, auth=(USER, PASSWORD), timeout=30, trust_env=False)


def _configuration(home: Path) -> dict[str, Any]:
    return {
        "StorageDirectory": str(home / "storage"),
        "IndexDirectory": str(home / "storage"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": HTTP_PORT,
        "DicomPort": DICOM_PORT,
        "DicomAet": AE_TITLE,
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomModalities": {"nightread": {"AET": "NIGHTREAD", "Host": "127.0.0.1", "Port": 11112, "AllowMove": True}},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }


@contextmanager
def orthanc(**options: Any) -> Iterator[Orthanc]:
    """A running Orthanc; `options` are keys of orthanc.json that differ from the fixture's own."""
    need("Orthanc", packages="orthanc orthanc-dicomweb iproute2")
    home = Path(tempfile.mkdtemp(prefix="nightread-orthanc-"))
    with namespace() as inside:
        server = Orthanc(inside, home, options)
        try:
            server.start()
            yield server
        finally:
            server.stop(at_once=True)
            shutil.rmtree(home)
