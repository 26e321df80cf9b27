"""Pictures: strangers' bytes become upright RGB or a typed refusal."""

import io
import struct
import zlib

import pytest
from PIL import Image

from server.images import ImageRefusedError, decode_reference, encode
from server.schemas import OutputFormat

LIMIT = 25_000_000


def to_bytes(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Encode a test image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def make_png_header(width: int, height: int) -> bytes:
    """Make a PNG that claims a size and holds next to no data: a bomb's header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette, bilevel, transparent and 16-bit pictures are all usable."""
    image = Image.new("RGB", (80, 70), "white").convert(mode if mode != "I;16" else "I;16")
    decoded = decode_reference(to_bytes(image, "PNG"), LIMIT)
    assert (decoded.mode, decoded.size) == ("RGB", (80, 70))


def test_transparent_parts_become_white() -> None:
    """Alpha is laid over white rather than dropped, which would show what it hid."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    decoded = decode_reference(to_bytes(image, "PNG"), LIMIT)
    assert decoded.getpixel((0, 0)) == (0, 0, 255)
    assert decoded.getpixel((63, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied() -> None:
    """A photo taken sideways comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = to_bytes(Image.new("RGB", (100, 64)), "JPEG", exif=exif)
    assert decode_reference(data, LIMIT).size == (64, 100)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "unsupported_image_format"),
        (b"hello", "unsupported_image_format"),
        (to_bytes(Image.new("RGB", (64, 64)), "GIF"), "unsupported_image_format"),
        (to_bytes(Image.new("RGB", (64, 64)), "BMP"), "unsupported_image_format"),
        (to_bytes(Image.new("RGB", (63, 64)), "PNG"), "image_too_small"),
        (to_bytes(Image.new("RGB", (64, 513)), "PNG"), "image_aspect_ratio_error"),
        (to_bytes(Image.effect_noise((640, 640), 50), "PNG")[:5000], "image_load_error"),
        (to_bytes(Image.effect_noise((640, 640), 50), "JPEG")[:5000], "image_load_error"),
        (make_png_header(5001, 5000), "image_too_large"),
        (make_png_header(12_000, 12_000), "image_too_large"),
        (make_png_header(100_000, 100_000), "image_too_large"),
    ],
)
def test_refusals_are_typed(data: bytes, expected: str) -> None:
    """What cannot be used is refused with fal's word for why, bombs by their header alone."""
    with pytest.raises(ImageRefusedError) as caught:
        decode_reference(data, LIMIT)
    assert caught.value.error_type == expected


@pytest.mark.parametrize("size", [(64, 64), (64, 512), (512, 64)])
def test_pictures_at_the_limits_pass(size: tuple[int, int]) -> None:
    """The smallest side and the widest ratio are allowed."""
    assert decode_reference(to_bytes(Image.new("RGB", size), "PNG"), LIMIT).size == size


def test_the_pixel_limit_is_inclusive() -> None:
    """A picture of exactly the limit passes, one row more does not."""
    data = to_bytes(Image.new("RGB", (100, 100)), "PNG")
    assert decode_reference(data, 100 * 100).size == (100, 100)
    with pytest.raises(ImageRefusedError):
        decode_reference(data, 100 * 100 - 1)


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_encoded_files_are_what_they_say(output_format: OutputFormat) -> None:
    """The bytes, the content type and the size agree."""
    encoded = encode(Image.new("RGB", (96, 64), "teal"), output_format)
    opened = Image.open(io.BytesIO(encoded.data))
    assert opened.get_format_mimetype() == encoded.content_type == f"image/{output_format.value}"
    assert opened.size == (encoded.width, encoded.height) == (96, 64)


def test_png_is_exact() -> None:
    """What a PNG gives back is what the model made."""
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    encoded = encode(image, OutputFormat.PNG)
    assert Image.open(io.BytesIO(encoded.data)).tobytes() == image.tobytes()
