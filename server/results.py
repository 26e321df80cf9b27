"""From what the runner made, or what went wrong, to the outcome that the result route replays."""

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import FalError, RequestError
from server.family.endpoint import Endpoint, Order
from server.files import URL_PREFIX, FileStore
from server.jobs import Job, Outcome, StoredFile
from server.runners.local import Generated
from server.runners.messages import Image, Preview
from server.schemas import ImageFile, OutputFormat


def cancelled_error() -> RequestError:
    """Make fal's answer for a request that its caller cancelled."""
    return RequestError(499, "Request was cancelled", "client_cancelled")


def missed_start_error() -> RequestError:
    """Make fal's answer for a request that was not begun in the time its caller gave."""
    return RequestError(504, "Request timed out", "request_timeout")


def our_fault() -> RequestError:
    """Make the answer for what only our log explains."""
    return RequestError(500, "Internal Server Error", "internal_error")


def error_outcome(error: FalError, keep_seconds: float, logs: str = "[]") -> Outcome:
    """Make the outcome of a request that failed."""
    return Outcome(
        http_status=error.status,
        body=json.dumps(error.body),
        keep_seconds=keep_seconds,
        error_type=error.error_type,
        logs=logs,
    )


def build_outcome(
    endpoint: Endpoint,
    order: Order,
    generated: Generated,
    files: FileStore,
    *,
    job: Job,
    keep_seconds: float,
    files_expire_at: float | None,
) -> Outcome:
    """Store the images and make the answer of the endpoint's own output model.

    With `sync_mode` the images are data URIs inside the answer and no file is written. Raises
    OSError when the disk refuses a file; those written before are deleted again.
    """
    if generated.done is None:
        raise ValueError("the request is not done")
    images = [pair for _, pair in sorted(generated.images.items())]
    stored: list[StoredFile] = []
    try:
        entries = [
            _inline(image, data, order.output_format)
            if order.sync_mode
            else _store(image, data, order.output_format, files, job, files_expire_at, stored)
            for image, data in images
        ]
    except OSError:
        delete_files(stored, files)
        raise
    answer = endpoint.output.model_validate(
        {
            "images": entries,
            "timings": generated.done.timings,
            "seed": order.seed,
            "has_nsfw_concepts": [image.has_nsfw_concept for image, _ in images],
            "prompt": generated.done.prompt,
        }
    )
    return Outcome(
        http_status=200,
        body=json.dumps(answer.model_dump()),
        keep_seconds=keep_seconds,
        inference_seconds=generated.done.timings["inference"],
        applied=", ".join(f"{name}={value}" for name, value in generated.done.applied.items()),
        verdicts=",".join(image.verdict.value for image, _ in images),
        prompt=generated.done.prompt,
        files=tuple(stored),
    )


def partial_answer(
    endpoint: Endpoint, order: Order, previews: Mapping[int, tuple[Preview, bytes]], newest: Preview
) -> dict[str, Any]:
    """Make an answer in the shape of the endpoint's output, of an order that is being drawn.

    Its images are previews, the last one of each image that was begun; `progress` is beside them.
    """
    shown = [pair for _, pair in sorted(previews.items())]
    answer = endpoint.output.model_validate(
        {
            "images": [_inline(preview, data, OutputFormat.JPEG) for preview, data in shown],
            "timings": {},
            "seed": order.seed,
            "has_nsfw_concepts": [preview.has_nsfw_concept for preview, _ in shown],
            "prompt": order.prompt,
        }
    )
    progress = {
        "image": newest.index + 1,
        "num_images": order.num_images,
        "step": newest.step,
        "steps": newest.steps,
    }
    return {**answer.model_dump(), "progress": progress}


def delete_files(stored: Sequence[StoredFile], files: FileStore) -> None:
    """Delete the files of an outcome that was not committed."""
    for file in stored:
        files.delete(file.name)


def _store(
    image: Image,
    data: bytes,
    output_format: OutputFormat,
    files: FileStore,
    job: Job,
    expires_at: float | None,
    stored: list[StoredFile],
) -> ImageFile:
    name = files.write(data, output_format.value)
    stored.append(
        StoredFile(
            name=name,
            content_type=image.content_type,
            size_bytes=len(data),
            owner=job.owner,
            acl=job.file_acl,
            expires_at=expires_at,
        )
    )
    return _describe(image, len(data), url=f"{job.origin}{URL_PREFIX}{name}", name=name)


def _inline(image: Image | Preview, data: bytes, output_format: OutputFormat) -> ImageFile:
    name = f"{uuid.uuid4().hex}.{output_format.value}"
    url = f"data:{image.content_type};base64,{base64.b64encode(data).decode('ascii')}"
    return _describe(image, len(data), url=url, name=name)


def _describe(image: Image | Preview, size_bytes: int, *, url: str, name: str) -> ImageFile:
    return ImageFile(
        url=url,
        content_type=image.content_type,
        file_name=name,
        file_size=size_bytes,
        width=image.width,
        height=image.height,
    )
