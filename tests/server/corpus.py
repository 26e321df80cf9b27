"""Odd but valid pictures, each with what it should look like, worked out without the server."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

from tests.server import icc
from tests.server.corpus_png import PLTE, make_pngs
from tests.server.png_writer import PALETTE, RGB, chunk, write_png
from tests.server.scene import (
    COLOURS,
    LOSSY,
    SCENE,
    Odd,
    clear_corner,
    grey_of,
    grey_picture,
    picture_of,
    rows_of,
    save,
    srgb_sample,
    to_srgb,
)

SAMPLES = Path(__file__).parent / "samples"
ORIENTATION = 0x0112


def make_corpus() -> Iterator[Odd]:
    """Make every odd picture there is."""
    yield from make_pngs()
    yield from _with_profiles()
    yield from _jpegs()
    yield from _jpegs_of_ink()
    yield from _webps()
    yield from _avifs()
    yield from _heics()
    yield from _turned()


def _with_profiles() -> Iterator[Odd]:
    for name, matrix in (("display-p3", icc.DISPLAY_P3), ("adobe-rgb", icc.ADOBE_RGB)):
        profile = icc.make_rgb_profile(matrix, 2.2)
        seen = picture_of(to_srgb(matrix))
        yield Odd(f"png-{name}", save(SCENE, "PNG", icc_profile=profile), seen, 2)
        yield Odd(
            f"jpeg-{name}", save(SCENE, "JPEG", quality=100, icc_profile=profile), seen, LOSSY
        )
        yield Odd(f"webp-{name}", save(SCENE, "WEBP", lossless=True, icc_profile=profile), seen, 2)
    linear = icc.make_grey_profile(1.0)
    seen = picture_of(lambda pixel: (srgb_sample(grey_of(pixel) / 255),) * 3)
    grey = grey_picture().getchannel("R")
    yield Odd("png-linear-grey", save(grey, "PNG", icc_profile=linear), seen, 2)
    yield Odd("jpeg-linear-grey", save(grey, "JPEG", quality=100, icc_profile=linear), seen, LOSSY)
    opaque = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    yield Odd("png-linear-grey-alpha", save(opaque, "PNG", icc_profile=linear), seen, 2)
    big = icc.make_rgb_profile(icc.DISPLAY_P3, 2.2) + bytes(2**21)
    yield Odd(
        "png-large-profile",
        save(SCENE, "PNG", icc_profile=big),
        picture_of(to_srgb(icc.DISPLAY_P3)),
        2,
    )
    p3 = icc.make_rgb_profile(icc.DISPLAY_P3, 2.2)
    for name, profile in (("broken", p3[:200]), ("noise", b"\xff" * 500), ("strange", linear)):
        yield Odd(f"png-profile-{name}", save(SCENE, "PNG", icc_profile=profile), SCENE)
    paletted = write_png(
        rows_of(lambda pixel: (COLOURS.index(pixel),)),
        PALETTE,
        8,
        [chunk(b"iCCP", b"p3\0\0" + zlib.compress(p3)), PLTE],
    )
    yield Odd("png-palette-display-p3", paletted, picture_of(to_srgb(icc.DISPLAY_P3)), 2)


def _jpegs() -> Iterator[Odd]:
    kinds: dict[str, dict[str, object]] = {
        "444": {"subsampling": 0},
        "422": {"subsampling": 1},
        "420": {"subsampling": 2},
        "progressive": {"progressive": True},
        "rgb": {"keep_rgb": True},
        "restarts": {"restart_marker_blocks": 1},
        "optimized": {"optimize": True},
        "comment": {"comment": b"x" * 60000},
        "broken-exif": {"exif": b"Exif\0\0MM\0*" + b"\xff" * 40},
    }
    for name, options in kinds.items():
        yield Odd(f"jpeg-{name}", save(SCENE, "JPEG", **{"quality": 95, **options}), SCENE, LOSSY)
    plain = save(SCENE, "JPEG", quality=95)
    grey = grey_picture()
    yield Odd("jpeg-grey", save(grey.getchannel("R"), "JPEG", quality=95), grey, LOSSY)
    yield Odd("jpeg-and-more", plain + b"\0" * 5000, SCENE, LOSSY)
    segments = b"".join(b"\xff\xec" + struct.pack(">H", 65535) + bytes(65533) for _ in range(50))
    yield Odd("jpeg-segments", plain[:2] + segments + plain[2:], SCENE, LOSSY)
    yield Odd("jpeg-padded-markers", plain[:2] + b"\xff" * 100 + plain[2:], SCENE, LOSSY)
    second = Image.new("RGB", (200, 300))
    two = save(SCENE, "MPO", save_all=True, append_images=[second], quality=95)
    yield Odd("jpeg-several", two, SCENE, LOSSY)


def _jpegs_of_ink() -> Iterator[Odd]:
    """Ink as Adobe stores it, inverted: 255 is none."""
    inks = SCENE.convert("CMYK")
    key = Image.new("L", SCENE.size, 51)
    inks = Image.merge("CMYK", (*inks.split()[:3], key))
    seen = picture_of(lambda pixel: tuple(sample * 204 // 255 for sample in pixel))
    cmyk = save(inks, "JPEG", quality=100, subsampling=0)
    yield Odd("jpeg-cmyk", cmyk, seen, LOSSY)
    yield Odd(
        "jpeg-cmyk-progressive", save(inks, "JPEG", quality=100, progressive=True), seen, LOSSY
    )
    # Pillow inverts what it saves, so that the file holds brightness, colour difference, and key.
    luma = [
        channel.point(lambda sample: 255 - sample)
        for channel in ImageChops.invert(SCENE).convert("YCbCr").split()
    ]
    ycck = save(Image.merge("CMYK", (*luma, key)), "JPEG", quality=100, subsampling=0)
    marker = ycck.index(b"Adobe")
    ycck = ycck[: marker + 11] + b"\2" + ycck[marker + 12 :]
    yield Odd("jpeg-ycck", ycck, seen, LOSSY)
    profile = icc.make_cmyk_profile()
    one_ink = Image.new("CMYK", SCENE.size, (255, 0, 0, 0))
    grey = srgb_sample(((75 + 16) / 116) ** 3)
    yield Odd(
        "jpeg-cmyk-profile",
        save(one_ink, "JPEG", quality=100, icc_profile=profile),
        Image.new("RGB", SCENE.size, (grey,) * 3),
        LOSSY,
    )


def _webps() -> Iterator[Odd]:
    clear, seen = clear_corner()
    black = Image.new("RGB", SCENE.size)
    yield Odd("webp-lossy", save(SCENE, "WEBP", quality=95), SCENE, LOSSY)
    yield Odd("webp-lossless", save(SCENE, "WEBP", lossless=True), SCENE)
    yield Odd("webp-lossy-alpha", save(clear, "WEBP", quality=95), seen, LOSSY)
    yield Odd("webp-lossless-alpha", save(clear, "WEBP", lossless=True), seen)
    frames: dict[str, object] = {"save_all": True, "append_images": [black], "lossless": True}
    yield Odd("webp-animated", save(SCENE, "WEBP", **frames), SCENE)
    yield Odd("webp-animated-alpha", save(clear, "WEBP", **frames), seen)
    still = save(SCENE, "WEBP", lossless=True)
    yield Odd("webp-and-more", still + b"\0" * 100, SCENE)


def _avifs() -> Iterator[Odd]:
    clear, seen = clear_corner()
    black = Image.new("RGB", SCENE.size)
    grey = grey_picture()
    best: dict[str, object] = {"quality": 95, "speed": 9}
    yield Odd("avif-420", save(SCENE, "AVIF", **best), SCENE, 2 * LOSSY)
    yield Odd("avif-444", save(SCENE, "AVIF", subsampling="4:4:4", **best), SCENE, 2 * LOSSY)
    yield Odd("avif-limited", save(SCENE, "AVIF", range="limited", **best), SCENE, 2 * LOSSY)
    yield Odd("avif-grey", save(grey.getchannel("R"), "AVIF", **best), grey, 2 * LOSSY)
    yield Odd("avif-alpha", save(clear, "AVIF", **best), seen, 2 * LOSSY)
    yield Odd(
        "avif-animated",
        save(SCENE, "AVIF", save_all=True, append_images=[black], **best),
        SCENE,
        2 * LOSSY,
    )
    profile = icc.make_rgb_profile(icc.DISPLAY_P3, 2.2)
    p3 = save(SCENE, "AVIF", icc_profile=profile, subsampling="4:4:4", **best)
    yield Odd("avif-display-p3", p3, picture_of(to_srgb(icc.DISPLAY_P3)), 2 * LOSSY)


def _heics() -> Iterator[Odd]:
    _, seen = clear_corner()
    expected = {
        "plain": SCENE,
        "subsampled": SCENE,
        "grey": SCENE.convert("L").convert("RGB"),
        "alpha": seen,
        "turned": SCENE.transpose(Image.Transpose.ROTATE_270),
        "exif_turned": SCENE,
        "display_p3": picture_of(to_srgb(icc.DISPLAY_P3)),
        "second_is_primary": SCENE,
        "thumbnail": SCENE,
        "ten_bits": SCENE,
    }
    for name, picture in expected.items():
        yield Odd(f"heic-{name}", (SAMPLES / f"{name}.heic").read_bytes(), picture, LOSSY)


def _turned() -> Iterator[Odd]:
    """EXIF has eight ways up; each file's picture is what Pillow's own function makes of it."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        raw = exif.tobytes()
        given = SCENE.copy()
        given.getexif()[ORIENTATION] = orientation
        seen = ImageOps.exif_transpose(given)
        yield Odd(f"png-turned-{orientation}", save(SCENE, "PNG", exif=raw), seen)
        yield Odd(
            f"jpeg-turned-{orientation}", save(SCENE, "JPEG", quality=95, exif=raw), seen, LOSSY
        )
        yield Odd(f"webp-turned-{orientation}", save(SCENE, "WEBP", lossless=True, exif=raw), seen)
        yield Odd(
            f"avif-turned-{orientation}",
            save(SCENE, "AVIF", quality=95, speed=9, exif=raw),
            seen,
            2 * LOSSY,
        )
        late = [chunk(b"eXIf", raw.removeprefix(b"Exif\0\0"))]
        yield Odd(
            f"png-turned-late-{orientation}", write_png(rows_of(tuple), RGB, after=late), seen
        )
