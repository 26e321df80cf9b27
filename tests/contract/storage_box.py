"""A server with small limits for uploads and a key, and calls on it; nothing here needs a model."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import connect

KEY = "name:secret"
MIB = 1024 * 1024
LIMIT_BYTES = 1 * MIB
QUOTA_BYTES = 8 * MIB
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
SHORT = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 1}'}
CANARY = "canary-3f1c"


@dataclass(frozen=True, slots=True)
class Box:
    """The server, with one client that carries the key and one that does not."""

    server: RunningServer
    keyed: httpx2.Client
    keyless: httpx2.Client

    def announce(self, kind: str = "", **headers: str) -> dict[str, str]:
        """Announce a file and return the paths to send it to and to read it from."""
        answer = self.keyed.post(
            f"/rest/storage/upload/initiate{kind}?storage_type=fal-cdn-v3",
            json={"content_type": "image/png", "file_name": "a.png"},
            headers=headers,
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert set(said) == {"upload_url", "file_url"}
        return {
            "upload": said["upload_url"].removeprefix(self.server.http),
            "file": said["file_url"].removeprefix(self.server.http),
        }

    def upload(self, data: bytes, **headers: str) -> str:
        """Upload with the key and return the path of the file."""
        answer = self.keyed.post("/files/upload", content=data, headers=headers)
        assert answer.status_code == 200, answer.text
        return urlsplit(str(answer.json()["access_url"])).path

    def files(self) -> set[Path]:
        """Return what lies in the folder of files, finished or not."""
        return {path for path in self.server.data_dir.glob("files/*/*") if path.is_file()}

    def digests(self) -> dict[str, str]:
        """Return every file outside the folder of stored files and the database, by its content."""
        folder = self.server.data_dir
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.parent.rglob("*")
            if path.is_file()
            and not path.is_relative_to(folder / "files")
            and not path.name.startswith("queue.sqlite3")
        }


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Return such a server, with a secret beside its data folder."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "canary.txt").write_text(CANARY)
    server = start_server(
        folder / "data",
        wait_ready=False,
        FLUX2_API_KEY=KEY,
        FLUX2_UPLOAD_LIMIT_BYTES=str(LIMIT_BYTES),
        FLUX2_MULTIPART_LIMIT_BYTES=str(2 * MIB),
        FLUX2_UPLOAD_QUOTA_BYTES=str(QUOTA_BYTES),
        FLUX2_SWEEP_SECONDS="0.2",
        FLUX2_TLS_PORT="none",
    )
    with connect(server, authorization=f"Key {KEY}") as keyed, connect(server) as keyless:
        yield Box(server, keyed, keyless)
    server.stop()
