"""Pictures as bytes: decode what strangers send, encode what the model made."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from server.schemas import OutputFormat

READABLE_FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE_PIXELS = 64
MAX_ASPECT_RATIO = 8
"""FLUX.2's own limits for a reference image (black-forest-labs/flux2, sampling.py)."""

CONTENT_TYPES = {
    OutputFormat.JPEG: "image/jpeg",
    OutputFormat.PNG: "image/png",
    OutputFormat.WEBP: "image/webp",
}
JPEG_QUALITY = 95
PNG_COMPRESS_LEVEL = 1
"""As fal's own toolkit encodes; level 6 takes twice the time for a few per cent."""


class ImageRefusedError(Exception):
    """The bytes are not a usable picture; `error_type` and `ctx` are fal's words for why."""

    def __init__(
        self, error_type: str, message: str, ctx: dict[str, int | list[str]] | None = None
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


def decode_reference(data: bytes, limit_pixels: int) -> Image.Image:
    """Decode a reference image to upright RGB; transparent parts become white.

    The header is checked before any pixel is decoded. Raises `ImageRefusedError`.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is stricter than the size Pillow warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=READABLE_FORMATS)
        _check_size(opened.width, opened.height, limit_pixels)
        upright = ImageOps.exif_transpose(opened)
        return _flatten(upright)
    except UnidentifiedImageError:
        raise ImageRefusedError(
            "unsupported_image_format",
            "Unsupported image format. Supported formats are .png, .jpg, .jpeg, .webp.",
            {"supported_formats": [".png", ".jpg", ".jpeg", ".webp"]},
        ) from None
    except Image.DecompressionBombError:
        raise _too_large(limit_pixels) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageRefusedError("image_load_error", "Image load error") from error


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


def _check_size(width: int, height: int, limit_pixels: int) -> None:
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageRefusedError(
            "image_too_small",
            f"Image dimensions are too small. Minimum dimensions are "
            f"{MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} pixels.",
            {"min_height": MIN_SIDE_PIXELS, "min_width": MIN_SIDE_PIXELS},
        )
    if width * height > limit_pixels:
        raise _too_large(limit_pixels)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageRefusedError(
            "image_aspect_ratio_error",
            f"Image aspect ratio is too extreme. At most {MAX_ASPECT_RATIO}:1 is allowed.",
        )


def _too_large(limit_pixels: int) -> ImageRefusedError:
    side = int(limit_pixels**0.5)
    return ImageRefusedError(
        "image_too_large",
        f"Image too large: at most {limit_pixels} pixels are allowed.",
        {"max_height": side, "max_width": side},
    )


def _flatten(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")
