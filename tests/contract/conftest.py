"""What the contract tests share: plain HTTP calls, waiting for a state, and small pictures.

Everything here talks to a server process from outside; nothing of `server` is imported.
"""

import base64
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx2
import pytest
from PIL import Image

from tests.conftest import RunningServer

T = TypeVar("T")

MIB = 1024 * 1024

WAIT_SECONDS = 120
"""How long any one state may take to come: generous, for machines that do other things too."""

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.005, 0.3
"""Pauses between polls, doubling: a refusal is there at once, an image takes the processor."""

SCRIPTS = Path(__file__).parent / "python"

IMAGE_KEYS = {"url", "content_type", "file_name", "file_size", "width", "height"}

LONG_JOB = {
    "prompt": "A glacier",
    "num_inference_steps": 50,
    "image_size": "square_hd",
    "num_images": 4,
}
"""For `fal-ai/flux-2`: keeps the runner busy for a minute, so it must be cancelled."""


def poll_until(probe: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Call `probe` until it gives something that is true and return that; fail when time is up."""
    deadline = time.monotonic() + seconds
    pause = FIRST_POLL_SECONDS
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_POLL_SECONDS)
    pytest.fail(f"not within {seconds} seconds: {what}")


@dataclass(frozen=True, slots=True)
class Api:
    """Plain calls on one server. Paths are relative to its origin, the queue under `/queue`."""

    http: httpx2.Client

    def run(self, endpoint_id: str, body: Any) -> httpx2.Response:
        """Ask synchronously."""
        return self.http.post(f"/{endpoint_id}", json=body)

    def submit(self, endpoint_id: str, body: Any) -> str:
        """Queue a request, which must be accepted, and return the path that it is kept under."""
        answer = self.http.post(f"/queue/{endpoint_id}", json=body)
        assert answer.status_code == 200, answer.text
        return kept_path(endpoint_id, answer.json()["request_id"])

    def status(self, kept: str, **params: str) -> httpx2.Response:
        """Ask where a request is."""
        return self.http.get(f"{kept}/status", params=params)

    def wait(self, kept: str, word: str = "COMPLETED") -> httpx2.Response:
        """Poll until the status is `word`; return that answer."""

        def probe() -> httpx2.Response | None:
            answer = self.status(kept)
            return answer if answer.json()["status"] == word else None

        return poll_until(probe, f"{kept} is {word}")

    def result(self, kept: str) -> httpx2.Response:
        """Ask for the outcome."""
        return self.http.get(kept)

    def cancel(self, kept: str) -> httpx2.Response:
        """Ask to stop a request."""
        return self.http.put(f"{kept}/cancel")


def kept_path(endpoint_id: str, request_id: str) -> str:
    """Return the path of a request on the queue, under its application, as clients build it."""
    application = "/".join(endpoint_id.split("/")[:2])
    return f"/queue/{application}/requests/{request_id}"


def connect(server: RunningServer, **headers: str) -> httpx2.Client:
    """Return a client of the server's plain http port; underscores in names become dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Client(base_url=server.http, headers=named, timeout=WAIT_SECONDS, trust_env=False)


@pytest.fixture(scope="session")
def api(server: RunningServer) -> Iterator[Api]:
    """Return plain calls on the server that all tests share."""
    with connect(server) as http:
        yield Api(http)


@pytest.fixture
def busy_runner(api: Api) -> Iterator[str]:
    """Keep the shared server's runner busy during a test; return the path of the long request."""
    kept = api.submit("fal-ai/flux-2", LONG_JOB)
    try:
        api.wait(kept, "IN_PROGRESS")
        yield kept
    finally:
        api.cancel(kept)
        api.wait(kept)


def make_picture(width: int = 64, height: int = 64, file_format: str = "PNG") -> bytes:
    """Return a small picture; the gradient makes it survive being looked at."""
    ramp = Image.linear_gradient("L").resize((width, height))
    buffer = io.BytesIO()
    Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).save(buffer, file_format)
    return buffer.getvalue()


def make_picture_uri(width: int = 64, height: int = 64, file_format: str = "PNG") -> str:
    """Return such a picture as a data URI."""
    payload = base64.b64encode(make_picture(width, height, file_format)).decode("ascii")
    return f"data:image/{file_format.lower()};base64,{payload}"


def pad_png(data: bytes, path: Path, size_bytes: int) -> None:
    """Write the same picture to a file of at least this size: zeros, in a chunk nobody reads."""
    header, rest = data[:33], data[33:]  # the signature and IHDR, which comes first
    kind, zeros = b"juNk", bytes(MIB)
    crc = zlib.crc32(kind)
    for _ in range(size_bytes // MIB):
        crc = zlib.crc32(zeros, crc)
    length = size_bytes // MIB * MIB
    with path.open("wb") as file:
        file.write(header + struct.pack(">I", length) + kind)
        file.seek(length, 1)
        file.write(struct.pack(">I", crc) + rest)


def check_image(
    api: Api, image: dict[str, Any], size: tuple[int, int], file_format: str
) -> Image.Image:
    """Check an image of an answer and the file behind its URL; return the decoded picture."""
    assert set(image) == IMAGE_KEYS
    assert (image["width"], image["height"]) == size
    assert image["content_type"] == f"image/{file_format}"
    assert image["file_name"].endswith(f".{file_format}")
    data = read_url(api, image)
    assert len(data) == image["file_size"]
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert (picture.format, picture.size) == (file_format.upper(), size)
    return picture


def read_url(api: Api, image: dict[str, Any]) -> bytes:
    """Return the bytes that an image's URL stands for: a file to fetch, or a data URI."""
    url = image["url"]
    if url.startswith("data:"):
        header, _, payload = url.partition(",")
        assert header == f"data:{image['content_type']};base64"
        return base64.b64decode(payload, validate=True)
    file = api.http.get(url)
    assert file.status_code == 200
    assert file.headers["content-type"] == image["content_type"]
    return file.content


_FLASH = {"prompt": "A lighthouse", "image_size": "square", "seed": 5}
_FEW_STEPS = {**_FLASH, "num_inference_steps": 4}

SMALL_INPUTS: dict[str, dict[str, Any]] = {
    "fal-ai/flux-2": _FEW_STEPS,
    "fal-ai/flux-2-dev": _FEW_STEPS,
    "fal-ai/flux-2/flash": _FLASH,
    "fal-ai/flux-2/flash/edit": {**_FLASH, "image_urls": [make_picture_uri()]},
    "fal-ai/flux-2-flex": {**_FLASH, "num_inference_steps": 2, "output_format": "png"},
}
"""For each endpoint that fal has a page of, a quick input: 512x512 pixels, png, seed 5."""


def client_environment(server: RunningServer) -> dict[str, str]:
    """Return the whole environment of a process whose fal clients shall talk to the server."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "FAL_RUN_HOST": server.tls_address,
        "FAL_QUEUE_RUN_HOST": f"{server.tls_address}/queue",
        "SSL_CERT_FILE": str(server.ca_path),
        "FAL_KEY": "local:local",
    }


def run_python_client(server: RunningServer, script: str, *arguments: Any) -> Any:
    """Run a script of `python/` with the unmodified client and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-P", SCRIPTS / script, *map(json.dumps, arguments)],
        env=client_environment(server),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS * 2,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test for what this machine lacks; where CI is set, nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"needed in CI: {reason}")
    pytest.skip(reason)
