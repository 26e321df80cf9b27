"""The quarantine folder: blocked images, kept for the operator's review and for nobody else.

Nothing is kept unless the operator names a folder, and nothing in it is served or swept.
"""

import json
import os
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipelines.verdicts import Verdict


def keep_for_review(
    folder: Path, request_id: str, index: int, image: Image.Image, verdict: Verdict
) -> Path:
    """Write a blocked image and what was said of it; return where the image lies.

    Both files are readable by their owner alone. Raises OSError when the disk refuses: the image
    stays blocked, only the review goes without it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{request_id}-{index}.png"
    content = BytesIO()
    image.save(content, "PNG")
    told = {
        "request_id": request_id,
        "index": index,
        "reason": verdict.reason.value,
        "score": verdict.score,
    }
    _write_private(path, content.getvalue())
    _write_private(path.with_suffix(".json"), json.dumps(told).encode("ascii") + b"\n")
    return path


def _write_private(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a picture cut short is no evidence."""
    unfinished = path.with_suffix(f"{path.suffix}.part")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
