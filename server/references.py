"""Reference images: strangers' files become upright sRGB, or a typed refusal.

The decoders of five formats and the limits they are held to. For the decoder process only: the
gateway itself never opens a stranger's picture.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from pi_heif import options as heif_options
from pi_heif.as_plugin import HeifImageFile
from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from server import png
from server.colours import to_rgb
from server.images import ImageRefusedError

MIN_SIDE_PIXELS = 64
MAX_ASPECT_RATIO = 8
"""FLUX.2's own limits for a reference image (black-forest-labs/flux2, sampling.py)."""
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic")
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
BRANDS_END = 64
"""How far into a file its brands are looked for (ISO 14496-12, `ftyp`)."""
IN_MEMORY_LIMIT_BYTES = 128 * 2**20
"""Largest file of the formats whose decoders read it whole: more than any real one has at the
largest number of pixels. PNG is read in pieces."""
PROFILE_LIMIT_BYTES = 8 * 2**20


def decode(source: BinaryIO, limit_pixels: int) -> Image.Image:
    """Decode a reference image to upright sRGB over white; of an animation, its first picture.

    What it is, is told by its content alone. Its size is judged before memory is taken for any
    pixel. Not safe in threads, as it sets Pillow's own limits while it works: the server calls it
    in the decoder process only. Raises `ImageRefusedError`, whatever the bytes do to the decoders.
    """
    file_format = _recognise(source)
    if file_format is None:
        raise ImageRefusedError(
            "unsupported_image_format",
            f"Unsupported image format. Supported formats are {', '.join(EXTENSIONS)}.",
            {"supported_formats": list(EXTENSIONS)},
        )
    with _pillow_limits(limit_pixels):
        try:
            picture = _open(source, file_format)
            _check_size(*picture.size, limit_pixels)
            orientation = _orientation(picture)
            picture.load()
            return _turn(to_rgb(picture), orientation)
        except ImageRefusedError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(limit_pixels) from None
        except Exception as error:
            # Hostile bytes make decoders raise anything, MemoryError included.
            raise ImageRefusedError("image_load_error", "Image load error") from error


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


def _recognise(source: BinaryIO) -> str | None:
    """Name the format of a file by its first bytes, and leave it at its start."""
    head = source.read(BRANDS_END)
    source.seek(0)
    if head.startswith(png.SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] != b"ftyp":
        return None
    brands = {head[at : at + 4] for at in range(8, min(len(head), int.from_bytes(head[:4])), 4)}
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & HEIC_BRANDS else None


def _open(source: BinaryIO, file_format: str) -> ImageFile.ImageFile:
    """Read a picture's header. No registry of formats is asked, so no other one can be opened."""
    if file_format == "PNG":
        return PngImagePlugin.PngImageFile(png.without_ballast(source))
    size_bytes = source.seek(0, io.SEEK_END)
    source.seek(0)
    if size_bytes > IN_MEMORY_LIMIT_BYTES:
        raise ImageRefusedError(
            "file_too_large", "File too large", {"max_size": IN_MEMORY_LIMIT_BYTES}
        )
    if file_format == "JPEG":
        return JpegImagePlugin.JpegImageFile(source)
    if file_format == "WEBP":
        return WebPImagePlugin.WebPImageFile(source)
    if file_format == "AVIF":
        return AvifImagePlugin.AvifImageFile(source)
    heic: ImageFile.ImageFile = HeifImageFile(source)
    return heic


@contextlib.contextmanager
def _pillow_limits(limit_pixels: int) -> Iterator[None]:
    """Set the limits that the decoders keep by themselves, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            # Pillow refuses more than twice as many. WebP takes memory for its pixels at once.
            (Image, "MAX_IMAGE_PIXELS", (limit_pixels + 1) // 2),
            # Profiles are compressed in PNG; the text that this limit is named for is left out.
            (PngImagePlugin, "MAX_TEXT_CHUNK", PROFILE_LIMIT_BYTES),
            # Each thread takes address space of its own, which is limited.
            (AvifImagePlugin, "DEFAULT_MAX_THREADS", 1),
            (heif_options, "DECODE_THREADS", 1),
            (heif_options, "THUMBNAILS", False),
            (heif_options, "DEPTH_IMAGES", False),
            (heif_options, "AUX_IMAGES", False),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _orientation(picture: Image.Image) -> int:
    """Return which way up EXIF says the picture is; broken EXIF says nothing."""
    try:
        orientation: int = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (
        ArithmeticError,
        LookupError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ):
        return 1
    return orientation


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(picture, in_place=True)
    return picture
