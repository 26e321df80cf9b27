"""Pictures as bytes: what the model made is encoded; what strangers sent may be refused."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from server.provenance.credentials import sign
from server.provenance.markers import DEFAULT_MARKING, Marking, marker_options
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


def encode(
    image: Image.Image, output_format: OutputFormat, marking: Marking = DEFAULT_MARKING
) -> EncodedImage:
    """Encode an RGB picture as fal does, with what the operator wants in it beside the pixels.

    Raises `ConfigurationError` when the operator's credentials cannot sign: a picture that should
    have them does not go out without.
    """
    if marking.watermark:
        from server.provenance.watermark import embed  # noqa: PLC0415  (numpy: not for a gateway)

        image = embed(image)
    buffer = io.BytesIO()
    options = marker_options(marking.model, output_format) if marking.marker else {}
    if output_format is OutputFormat.PNG:
        image.save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL, **options)
    elif output_format is OutputFormat.JPEG:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, **options)
    else:
        image.save(buffer, "WEBP", quality=JPEG_QUALITY, **options)
    data, content_type = buffer.getvalue(), CONTENT_TYPES[output_format]
    if marking.credentials:
        data = sign(data, content_type, marking.credentials, marking.model)
    return EncodedImage(data, content_type, *image.size)
