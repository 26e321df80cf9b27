"""What a receipt says: all that the data folder knows of how a request's images were made."""

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from server.catalogue import find_endpoint
from server.errors import ConfigurationError
from server.files import FileStore
from server.image_urls import IMAGE_FIELD, is_data_uri, own_file_name
from server.jobs import Job
from server.loading import BUILDS_FOLDER
from server.names import OwnNames
from server.receipts.hashes import FileHashes
from server.settings import Settings
from server.store.glance import glance


def find_job(settings: Settings, request_id: str) -> tuple[Job, dict[str, Any]]:
    """Return a job that made images, and its input.

    Raises `ConfigurationError` for one that is unknown, erased, not over or failed.
    """
    found = glance(settings.data_dir, request_id)
    if found is None:
        raise ConfigurationError(f"{request_id}: there is no such request, or it was erased")
    job, text = found
    if job.outcome is None:
        raise ConfigurationError(f"{request_id} is {job.status}: there is nothing to tell of yet")
    if job.outcome.http_status != 200:
        raise ConfigurationError(f"{request_id} failed: it made no image")
    return job, json.loads(text)


def make_receipt(settings: Settings, request_id: str, hashes: FileHashes) -> dict[str, Any]:
    """Return what is to be signed. Raises `ConfigurationError` as `find_job` does."""
    job, given = find_job(settings, request_id)
    if job.outcome is None:
        raise ValueError("the job has no outcome")
    answer = json.loads(job.outcome.body)
    applied = read_applied(job.outcome.applied)
    references = read_references(settings, job, given)
    flags = answer.get("has_nsfw_concepts") or [None] * len(answer["images"])
    return {
        "request_id": request_id,
        "endpoint_id": job.endpoint_id,
        "completed_at": _moment(job.completed_at),
        "input": {key: value for key, value in given.items() if key != IMAGE_FIELD},
        "references": [_sha256(data) if data is not None else None for data in references],
        "seed": answer["seed"],
        "prompt": job.outcome.prompt,
        "applied": applied,
        "build": read_build(settings.data_dir, applied.get("build"), hashes),
        "verdicts": job.outcome.verdicts.split(",") if job.outcome.verdicts else None,
        "images": [
            _tell_image(settings, image, index, flag)
            for index, (image, flag) in enumerate(zip(answer["images"], flags, strict=True))
        ],
    }


def read_applied(text: str | None) -> dict[str, str]:
    """Read `name=value, name=value`, as the header of results has it."""
    items = (item.partition("=") for item in (text or "").split(", ") if item)
    return {name: value for name, _, value in items}


def read_build(data_dir: Path, name: str | None, hashes: FileHashes) -> dict[str, Any] | None:
    """Return what the images came from, with the files' hashes instead of where they lie.

    A hash is None when the file has changed since and was not hashed before.
    """
    if not name or not name.isalnum():
        return None
    try:
        text = (data_dir / BUILDS_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    except OSError:
        return None
    build: dict[str, Any] = json.loads(text)
    folder = Path(build.pop("model_folder"))
    build["files"] = {
        _relative(Path(file["path"]), folder): hashes.of(file) for file in build["files"]
    }
    if build["lora"]:
        path = Path(build["lora"]["path"])
        build["lora"] = {"name": path.name, "sha256": hashes.of(build["lora"])}
    return build


def read_references(settings: Settings, job: Job, given: Mapping[str, Any]) -> list[bytes | None]:
    """Return the reference images of a job as they were sent; None for what is not here."""
    urls = given.get(IMAGE_FIELD) or []
    names, files = OwnNames.of(settings), FileStore(settings.data_dir / "files")
    found: list[bytes | None] = []
    for url in urls[: find_endpoint(job.endpoint_id).reference_limit]:
        data = None
        with contextlib.suppress(OSError, ValueError):
            if is_data_uri(url):
                data = base64.b64decode(url.partition(",")[2].strip(), validate=True)
            elif name := own_file_name(url, job.origin, names):
                path = files.find(name)
                data = path.read_bytes() if path else None
        found.append(data)
    return found


def read_image(settings: Settings, image: Mapping[str, Any]) -> bytes | None:
    """Return the file of one image of an answer, or None when it is gone."""
    if is_data_uri(image["url"]):
        return base64.b64decode(image["url"].partition(",")[2])
    path = FileStore(settings.data_dir / "files").find(image["file_name"])
    return path.read_bytes() if path else None


def pixels_sha256(image: Image.Image) -> str:
    """Return the hash of decoded pixels: of the size, and of red, green and blue in rows."""
    size = f"{image.width}x{image.height} RGB\n".encode("ascii")
    return _sha256(size + image.convert("RGB").tobytes())


def open_image(data: bytes) -> Image.Image:
    """Decode a file of ours."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _tell_image(
    settings: Settings, image: Mapping[str, Any], index: int, flag: bool | None
) -> dict[str, Any]:
    data = read_image(settings, image)
    return {
        "index": index,
        "file": image["file_name"],
        "content_type": image["content_type"],
        "width": image["width"],
        "height": image["height"],
        "flagged": flag,
        "sha256": _sha256(data) if data is not None else None,
        "pixels_sha256": pixels_sha256(open_image(data)) if data is not None else None,
    }


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
