"""Pictures as bytes: what the model made is encoded; what strangers sent may be refused."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from server.schemas import OutputFormat

CONTENT_TYPES = {
    OutputFormat.JPEG: "image/jpeg",
    OutputFormat.PNG: "image/png",
    OutputFormat.WEBP: "image/webp",
}
JPEG_QUALITY = 95
PNG_COMPRESS_LEVEL = 1
"""As fal's own toolkit encodes; level 6 takes twice the time for a few per cent."""


RefusalType = Literal[
    "file_too_large",
    "image_aspect_ratio_error",
    "image_load_error",
    "image_too_large",
    "image_too_small",
    "unsupported_image_format",
]
"""fal's words for what is wrong with a picture, and one of ours for its shape."""


class ImageRefusedError(Exception):
    """The bytes are not a usable picture; `error_type` and `ctx` are fal's words for why."""

    def __init__(
        self,
        error_type: RefusalType,
        message: str,
        ctx: dict[str, int | list[str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.ctx = ctx


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture as the bytes of a file."""

    data: bytes
    content_type: str
    width: int
    height: int


def encode(image: Image.Image, output_format: OutputFormat) -> EncodedImage:
    """Encode an RGB picture as fal does."""
    buffer = io.BytesIO()
    if output_format is OutputFormat.PNG:
        image.save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    elif output_format is OutputFormat.JPEG:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "WEBP", quality=JPEG_QUALITY)
    return EncodedImage(buffer.getvalue(), CONTENT_TYPES[output_format], *image.size)
