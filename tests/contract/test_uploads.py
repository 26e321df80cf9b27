"""Uploads by the real clients, and what the server then makes of the files."""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    MIB,
    Api,
    connect,
    make_picture_uri,
    pad_png,
    poll_until,
    run_python_client,
)
from tests.contract.test_javascript_client import run_script

EDIT = "fal-ai/flux-2/flash/edit"
INPUT = {"prompt": "Paint it blue", "image_size": "square", "seed": 3, "sync_mode": True}
SAME_BYTES = {"upload", "upload_file", "repository", "fallback", "blob", "untyped", "file"}
KEY = "local:local"  # what the clients send


@dataclass(frozen=True, slots=True)
class Box:
    """A server that wants a key, with calls that carry it, and files to upload.

    `big` is above 100 MiB and shows the same as `small`.
    """

    server: RunningServer
    api: Api
    picture: str
    small: Path
    big: Path

    def edit(self, *image_urls: str) -> str:
        """Ask for an edit of these references and return the image as a data URI."""
        return self.image(EDIT, image_urls=list(image_urls))

    def image(self, endpoint_id: str, **more: Any) -> str:
        """Ask for one image and return it as a data URI."""
        answer = self.api.run(endpoint_id, {**INPUT, **more})
        assert answer.status_code == 200, answer.text
        url: str = answer.json()["images"][0]["url"]
        return url

    def read(self, url: str) -> httpx2.Response:
        """Read a file as anybody may, by its path: hosts and ports are the client's affair."""
        with connect(self.server) as nobody:
            return nobody.get(urlsplit(url).path)


@pytest.fixture(scope="module")
def box(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Return the server with its files, and delete the big ones afterwards."""
    folder = tmp_path_factory.mktemp("uploads")
    picture = make_picture_uri(96, 64)
    small, big = folder / "small.png", folder / "big.png"
    small.write_bytes(base64.b64decode(picture.partition(",")[2]))
    pad_png(small.read_bytes(), big, 101 * MIB)
    server = start_server(folder / "data", FLUX2_API_KEY=KEY, FLUX2_SWEEP_SECONDS="0.2")
    with connect(server, authorization=f"Key {KEY}") as http:
        yield Box(server, Api(http), picture, small, big)
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def expected(box: Box) -> str:
    """Return the edit of the small picture, four times, sent as data URIs.

    The references must matter: another picture, or none, gives another image.
    """
    edited = box.edit(*[box.picture] * 4)
    assert box.edit(*[make_picture_uri(64, 96)] * 4) != edited
    assert box.image("fal-ai/flux-2/flash") != edited
    return edited


def check_files(box: Box, urls: dict[str, str]) -> None:
    """Check that each URL gives what was uploaded, as what it is and nothing else."""
    for way, url in urls.items():
        answer = box.read(url)
        headers = answer.headers
        if "private" in way:
            assert (answer.status_code, answer.json()) == (404, {"detail": "File not found"})
            assert box.api.http.get(urlsplit(url).path).content == box.small.read_bytes()
            continue
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; sandbox"
        if "text" in way:
            assert answer.content == b"Hello, World!"
            assert headers["content-type"] == "text/plain; charset=utf-8"
            assert headers["content-disposition"] == "attachment"
        else:
            assert headers["content-type"] == "image/png", way
            assert headers["content-disposition"] == "inline"
        if way in SAME_BYTES:
            assert answer.content == box.small.read_bytes()


def test_every_way_of_the_python_client(box: Box, expected: str) -> None:
    """All uploads, blocking and async, whole, in parts and by the fallback, are references."""
    origin = f"https://{box.server.tls_address}"
    urls = run_python_client(box.server, "uploads.py", origin, str(box.small), str(box.big))
    assert len(set(urls.values())) == len(urls) == 16
    assert all(url.startswith(f"{origin}/files/") for url in urls.values())
    check_files(box, urls)
    names = ("upload", "upload_file in parts", "upload_image", "fallback")
    assert box.edit(*(urls[name] for name in names)) == expected
    names = ("async upload", "async upload in parts", "async upload_image", "async repository")
    assert box.edit(*(urls[name] for name in names)) == expected


def test_every_way_of_the_javascript_client(box: Box, expected: str, node: str) -> None:
    """Blobs, files, parts, and a Blob inside the input, which the client uploads by itself."""
    found = run_script(
        node, box.server, "uploads.mjs", str(box.small), str(box.big), EDIT, json.dumps(INPUT)
    )
    urls = found["urls"]
    assert all(url.startswith(f"{box.server.http}/files/") for url in urls.values())
    check_files(box, urls)
    names = ("blob", "file", "untyped", "parts")
    assert box.edit(*(urls[name] for name in names)) == expected
    (image,) = found["subscribed"]["data"]["images"]
    assert image["url"] == box.edit(box.picture)


def test_what_cannot_be_a_reference(box: Box) -> None:
    """A text is no picture, and a file that ended before its request began cannot be had."""
    wish = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 1}'}
    text = box.api.http.post("/files/upload", content=b"Hello, World!").json()["access_url"]
    short = box.api.http.post("/files/upload", content=box.small.read_bytes(), headers=wish)
    gone = short.json()["access_url"]
    poll_until(lambda: box.read(gone).status_code == 404, "the file is gone")
    for url, kind in ((text, "unsupported_image_format"), (gone, "file_download_error")):
        answer = box.api.run(EDIT, {**INPUT, "image_urls": [box.picture, url]})
        assert answer.status_code == 422
        (item,) = answer.json()["detail"]
        assert (item["type"], item["loc"]) == (kind, ["body", "image_urls", 1])
