"""Reference images: strangers' bytes become upright RGB or a typed refusal."""

import io
import os
import subprocess
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from server import references
from server.images import ImageRefusedError
from server.references import decode
from tests.server.corpus import SAMPLES, make_corpus
from tests.server.png_writer import RGB, SIGNATURE, chunk, header, make_bomb, write_png
from tests.server.scene import SCENE, Odd, largest_difference, save

LIMIT = 25_000_000
CORPUS = list(make_corpus())
ORACLE = os.environ.get("FLUX2_TEST_IMAGEMAGICK", "")
FORMATS = {
    "PNG": save(SCENE, "PNG"),
    "JPEG": save(SCENE, "JPEG"),
    "WEBP": save(SCENE, "WEBP"),
    "AVIF": save(SCENE, "AVIF"),
    "HEIC": (SAMPLES / "plain.heic").read_bytes(),
}
OTHER_FORMATS = (
    *("BMP", "DDS", "DIB", "EPS", "GIF", "ICNS", "ICO", "JPEG2000", "PCX", "PDF", "PPM"),
    *("SGI", "TGA", "TIFF"),
)


def refuse(data: bytes, limit_pixels: int = LIMIT) -> ImageRefusedError:
    """Return the refusal that decoding ends with."""
    with pytest.raises(ImageRefusedError) as caught:
        decode(io.BytesIO(data), limit_pixels)
    return caught.value


@pytest.mark.parametrize("odd", CORPUS, ids=lambda odd: odd.name)
def test_odd_pictures_look_as_they_should(odd: Odd) -> None:
    """What the standards allow is decoded to what it means, upright and over white."""
    decoded = decode(io.BytesIO(odd.data), LIMIT)
    assert largest_difference(decoded, odd.expected) <= odd.tolerance


def test_the_corpus_is_large() -> None:
    """The promise is sixty odd pictures, each of its own kind."""
    names = {odd.name for odd in CORPUS if "turned" not in odd.name}
    assert len(names) >= 60
    assert len({odd.name for odd in CORPUS}) == len(CORPUS)


@pytest.mark.skipif(not ORACLE, reason="FLUX2_TEST_IMAGEMAGICK does not name ImageMagick's convert")
def test_imagemagick_agrees(tmp_path: Path) -> None:
    """A decoder that shares no code with ours sees the same pictures.

    Left out is what ImageMagick 6 does not read: EXIF of PNG and WebP, alpha and profiles of
    AVIF and HEIC, and a PNG without its end.
    """
    profile = tmp_path / "srgb.icc"
    profile.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    shown = []
    for odd in CORPUS:
        kind, _, rest = odd.name.partition("-")
        if kind not in {"png", "jpeg", "webp"} or rest == "without-end":
            continue
        if kind == "jpeg" or "turned" not in rest:
            (tmp_path / odd.name).with_suffix(f".{kind}").write_bytes(odd.data)
            shown.append(odd)
    sources = [f"{tmp_path / odd.name}.{odd.name.partition('-')[0]}[0]" for odd in shown]
    flat = ["-profile", str(profile), "-background", "white", "-alpha", "remove"]
    command = [ORACLE, *sources, *flat, "-alpha", "off", "-auto-orient", str(tmp_path / "%d.ppm")]
    subprocess.run(command, capture_output=True, check=False)
    for index, odd in enumerate(shown):
        with Image.open(tmp_path / f"{index}.ppm") as seen:
            assert largest_difference(seen.convert("RGB"), odd.expected) <= odd.tolerance, odd.name


def test_formats_are_told_by_content() -> None:
    """Each of the five is read; every other is refused by name."""
    for data in FORMATS.values():
        assert decode(io.BytesIO(data), LIMIT).size == SCENE.size
    for name in OTHER_FORMATS:
        error = refuse(save(SCENE, name))
        assert error.error_type == "unsupported_image_format"
        assert error.ctx
        assert ".heic" in str(error.ctx["supported_formats"])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "unsupported_image_format"),
        (b"hello", "unsupported_image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image_format"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "unsupported_image_format"),
        (SIGNATURE, "image_load_error"),
        (b"\xff\xd8\xff", "image_load_error"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image_load_error"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "image_load_error"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "image_load_error"),
        (save(Image.new("RGB", (63, 64)), "PNG"), "image_too_small"),
        (save(Image.new("RGB", (64, 513)), "PNG"), "image_aspect_ratio_error"),
        (save(Image.new("RGB", (1, 1)), "WEBP"), "image_too_small"),
        (save(Image.effect_noise((640, 640), 50), "PNG")[:5000], "image_load_error"),
        (save(Image.effect_noise((640, 640), 50), "JPEG")[:5000], "image_load_error"),
        (save(Image.effect_noise((640, 640), 50), "WEBP")[:5000], "image_load_error"),
        (save(Image.effect_noise((640, 640), 50), "AVIF")[:5000], "image_load_error"),
        (FORMATS["HEIC"][:900], "image_load_error"),
        (make_bomb(5001, 5000), "image_too_large"),
        (make_bomb(100_000, 100_000), "image_too_large"),
        (make_bomb(2**31 - 1, 2**31 - 1), "image_too_large"),
        (SIGNATURE + header(64, 64)[:-1] + b"?", "image_load_error"),
        (SIGNATURE + header(64, 64) + chunk(b"IEND", b""), "image_load_error"),
        (
            write_png(
                [[(0, 0, 0)] * 64] * 64,
                RGB,
                before=[chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**26)))],
            ),
            "image_load_error",
        ),
    ],
)
def test_refusals_are_typed(data: bytes, expected: str) -> None:
    """What cannot be used is refused with fal's word for why."""
    assert refuse(data).error_type == expected


@pytest.mark.parametrize("size", [(64, 64), (64, 512), (512, 64)])
def test_pictures_at_the_limits_pass(size: tuple[int, int]) -> None:
    """The smallest side and the widest ratio are allowed."""
    assert decode(io.BytesIO(save(Image.new("RGB", size), "PNG")), LIMIT).size == size


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_pixel_limit_is_inclusive(file_format: str) -> None:
    """A picture of exactly the limit passes, one pixel more does not, in every format."""
    data, pixels = FORMATS[file_format], SCENE.width * SCENE.height
    assert decode(io.BytesIO(data), pixels).size == SCENE.size
    error = refuse(data, pixels - 1)
    assert error.error_type == "image_too_large"
    assert error.ctx == {"max_height": 87, "max_width": 87}


def test_files_that_are_read_whole_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only PNG is read in pieces; a file of another format may not be larger than memory allows."""
    for file_format, data in FORMATS.items():
        monkeypatch.setattr(references, "IN_MEMORY_LIMIT_BYTES", len(data) - 1)
        if file_format == "PNG":
            assert decode(io.BytesIO(data), LIMIT).size == SCENE.size
        else:
            error = refuse(data)
            assert error.error_type == "file_too_large"
            assert error.ctx == {"max_size": len(data) - 1}


def test_pillows_limits_are_as_they_were() -> None:
    """Decoding leaves nothing set behind in the process it runs in."""
    before = Image.MAX_IMAGE_PIXELS
    decode(io.BytesIO(FORMATS["PNG"]), LIMIT)
    refuse(b"")
    assert before == Image.MAX_IMAGE_PIXELS
