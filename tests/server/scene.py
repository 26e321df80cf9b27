"""The picture behind every odd one, and how pictures are compared."""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from tests.server import icc
from tests.server.make_samples import make_scene
from tests.server.png_writer import Rows

Pixel = tuple[int, ...]
Recolour = Callable[[Pixel], Pixel]

WIDTH, HEIGHT = 96, 80
SCENE = make_scene(WIDTH, HEIGHT)
COLOURS: list[Pixel] = [(30, 60, 190), (40, 170, 60), (200, 30, 40), (230, 220, 90)]
"""All that the scene has; its first quarter has the third."""
WHITE = (255, 255, 255)
GREY_WEIGHTS = (299, 587, 114)
EXACT, ROUNDED, LOSSY = 0, 1, 4
"""Most that a sample may differ: not at all, by a rounding, by what a lossy encoder does to
plain colours."""


@dataclass(frozen=True, slots=True)
class Odd:
    """A file, the picture in it, and how far what is decoded may be from that."""

    name: str
    data: bytes
    expected: Image.Image
    tolerance: int = EXACT


def save(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Encode a picture with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def largest_difference(left: Image.Image, right: Image.Image) -> int:
    """Return by how much any sample of two pictures differs; a border of the quarters is left out.

    Lossy encoders bleed colours there.
    """
    assert (left.mode, left.size) == (right.mode, right.size)
    width, height = left.size
    return max(
        abs(a - b)
        for x in (4, width // 4, width // 2 - 10, width // 2 + 10, width - 5)
        for y in (4, height // 4, height // 2 - 10, height // 2 + 10, height - 5)
        for a, b in zip(pixel_of(left, x, y), pixel_of(right, x, y), strict=True)
    )


def pixel_of(image: Image.Image, x: int, y: int) -> Pixel:
    """Return one pixel of a picture that has several channels."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return tuple(int(sample) for sample in pixel)


def rows_of(recolour: Recolour) -> Rows:
    """Return the scene's pixels by row, each recoloured."""
    colours = {colour: recolour(colour) for colour in COLOURS}
    return [[colours[pixel_of(SCENE, x, y)] for x in range(WIDTH)] for y in range(HEIGHT)]


def picture_of(recolour: Recolour) -> Image.Image:
    """Return the scene as an RGB picture, each pixel recoloured."""
    picture = Image.new("RGB", SCENE.size)
    for y, row in enumerate(rows_of(recolour)):
        for x, pixel in enumerate(row):
            picture.putpixel((x, y), pixel)
    return picture


def grey_of(pixel: Pixel) -> int:
    """Return how light a colour is, as a file of eight bits has it."""
    return sum(w * s for w, s in zip(GREY_WEIGHTS, pixel, strict=True)) // 1000


def grey_picture(levels: int = 256) -> Image.Image:
    """Return the scene in so many shades of grey."""

    def shade(pixel: Pixel) -> Pixel:
        return (grey_of(pixel) * levels // 256 * 255 // (levels - 1),) * 3

    return picture_of(shade)


def clear_corner() -> tuple[Image.Image, Image.Image]:
    """Return the scene with its first quarter transparent, and how that looks on white."""
    clear = SCENE.copy()
    clear.putalpha(255)
    clear.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT // 2))
    seen = SCENE.copy()
    seen.paste(WHITE, (0, 0, WIDTH // 2, HEIGHT // 2))
    return clear, seen


def srgb_sample(light: float) -> int:
    """Return the sample of sRGB for an amount of light between 0 and 1 (IEC 61966-2-1)."""
    light = min(max(light, 0.0), 1.0)
    curved = 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
    return round(curved * 255)


def to_srgb(matrix: icc.Matrix) -> Recolour:
    """Return what the colours of a profile of gamma 2.2 are in sRGB, by the matrices alone."""
    inverse = (
        (3.13386, -1.61687, -0.49061),
        (-0.97877, 1.91614, 0.03345),
        (0.07194, -0.22899, 1.40524),
    )

    def convert(pixel: Pixel) -> Pixel:
        light = [(sample / 255) ** 2.2 for sample in pixel]
        xyz = [sum(m * s for m, s in zip(row, light, strict=True)) for row in matrix]
        return tuple(
            srgb_sample(sum(m * s for m, s in zip(row, xyz, strict=True))) for row in inverse
        )

    return convert
