"""Odd but valid PNG files: every kind of pixel, every way to be transparent, every ballast."""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.server.png_writer import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, write_png
from tests.server.scene import (
    COLOURS,
    HEIGHT,
    ROUNDED,
    SCENE,
    WHITE,
    WIDTH,
    Odd,
    Pixel,
    grey_of,
    grey_picture,
    picture_of,
    pixel_of,
    rows_of,
    save,
)

FIRST = pixel_of(SCENE, 0, 0)
PLTE = chunk(b"PLTE", b"".join(bytes(colour) for colour in COLOURS))


def make_pngs() -> Iterator[Odd]:
    """Make every odd PNG but those with profiles and those that are turned."""
    yield from _greys()
    yield from _colours()
    yield from _palettes()
    yield from _with_alpha()
    yield from _with_a_clear_colour()
    yield from _with_ballast()


def _deep(pixel: Pixel) -> Pixel:
    return tuple(sample * 257 + 90 for sample in pixel)


def _indexed(pixel: Pixel) -> Pixel:
    return (COLOURS.index(pixel),)


def _greys() -> Iterator[Odd]:
    for depth in (1, 2, 4, 8):

        def level(pixel: Pixel, depth: int = depth) -> Pixel:
            return (grey_of(pixel) >> (8 - depth),)

        rows, seen = rows_of(level), grey_picture(2**depth)
        yield Odd(f"png-grey-{depth}", write_png(rows, GREY, depth), seen)
        interlaced = write_png(rows, GREY, depth, interlaced=True)
        yield Odd(f"png-grey-{depth}-interlaced", interlaced, seen)
        # The first quarter is transparent by a tRNS chunk.
        clear = [chunk(b"tRNS", struct.pack(">H", *level(FIRST)))]
        shown = seen.copy()
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if level(pixel_of(SCENE, x, y)) == level(FIRST):
                    shown.putpixel((x, y), WHITE)
        yield Odd(f"png-grey-{depth}-clear", write_png(rows, GREY, depth, clear), shown)
    rows = rows_of(lambda pixel: (grey_of(pixel) * 257 + 90,))
    yield Odd("png-grey-16", write_png(rows, GREY, 16), grey_picture())


def _colours() -> Iterator[Odd]:
    yield Odd("png-rgb-8-interlaced", write_png(rows_of(tuple), RGB, interlaced=True), SCENE)
    yield Odd("png-rgb-16", write_png(rows_of(_deep), RGB, 16), SCENE, ROUNDED)
    interlaced = write_png(rows_of(_deep), RGB, 16, interlaced=True)
    yield Odd("png-rgb-16-interlaced", interlaced, SCENE, ROUNDED)


def _palettes() -> Iterator[Odd]:
    rows = rows_of(_indexed)
    for depth in (2, 4, 8):
        yield Odd(f"png-palette-{depth}", write_png(rows, PALETTE, depth, [PLTE]), SCENE)
    two = [chunk(b"PLTE", bytes((*COLOURS[2], *COLOURS[0])))]
    yield Odd(
        "png-palette-1",
        write_png(rows_of(lambda pixel: (int(pixel[2] > 128),)), PALETTE, 1, two),
        picture_of(lambda pixel: COLOURS[0] if pixel[2] > 128 else COLOURS[2]),
    )
    one_clear = [PLTE, chunk(b"tRNS", bytes(255 * (colour != FIRST) for colour in COLOURS))]
    yield Odd(
        "png-palette-one-clear",
        write_png(rows, PALETTE, 8, one_clear),
        picture_of(lambda pixel: WHITE if pixel == FIRST else pixel),
    )
    all_faint = [PLTE, chunk(b"tRNS", bytes((4,) * len(COLOURS)))]
    yield Odd(
        "png-palette-all-faint",
        write_png(rows, PALETTE, 8, all_faint),
        picture_of(lambda pixel: tuple(round(sample * 4 / 255 + 251) for sample in pixel)),
        ROUNDED,
    )


def _with_alpha() -> Iterator[Odd]:
    def over_white(pixel: Pixel) -> Pixel:
        return tuple(round(sample * 128 / 255 + 127) for sample in pixel)

    def grey_over_white(pixel: Pixel) -> Pixel:
        return over_white((grey_of(pixel),) * 3)

    for depth, scale in ((8, 1), (16, 257)):

        def rgba(pixel: Pixel, scale: int = scale) -> Pixel:
            return tuple(sample * scale for sample in (*pixel, 128))

        def grey_alpha(pixel: Pixel, scale: int = scale) -> Pixel:
            return grey_of(pixel) * scale, 128 * scale

        colour = write_png(rows_of(rgba), RGBA, depth)
        yield Odd(f"png-rgba-{depth}", colour, picture_of(over_white), ROUNDED)
        grey = write_png(rows_of(grey_alpha), GREY_ALPHA, depth)
        yield Odd(f"png-grey-alpha-{depth}", grey, picture_of(grey_over_white), ROUNDED)


def _with_a_clear_colour() -> Iterator[Odd]:
    seen = picture_of(lambda pixel: WHITE if pixel == FIRST else pixel)
    clear = [chunk(b"tRNS", struct.pack(">3H", *FIRST))]
    yield Odd("png-rgb-8-clear", write_png(rows_of(tuple), RGB, 8, clear), seen)
    clear = [chunk(b"tRNS", struct.pack(">3H", *_deep(FIRST)))]
    yield Odd("png-rgb-16-clear", write_png(rows_of(_deep), RGB, 16, clear), seen, ROUNDED)
    # Only the lowest bit sets the clear value apart from its neighbour.
    third = WIDTH // 3
    rows = [[(25700,)] * third + [(25701,)] * third + [(25957,)] * third] * HEIGHT
    deep = Image.new("RGB", SCENE.size, (100, 100, 100))
    deep.paste(WHITE, (third, 0, 2 * third, HEIGHT))
    deep.paste((101, 101, 101), (2 * third, 0, WIDTH, HEIGHT))
    clear = [chunk(b"tRNS", struct.pack(">H", 25701))]
    yield Odd("png-grey-16-clear", write_png(rows, GREY, 16, clear), deep)


def _with_ballast() -> Iterator[Odd]:
    rows = rows_of(tuple)
    bomb = zlib.compress(bytes(2**24))
    strange: dict[str, list[bytes]] = {
        "text": [chunk(b"tEXt", b"Comment\0" + b"x" * 2**20)],
        "text-bomb": [chunk(b"zTXt", b"Comment\0\0" + bomb)] * 100,
        "international-text-bomb": [chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)],
        "unknown": [chunk(b"prVt", bytes(2**22))],
        "damaged": [chunk(b"teSt", b"data")[:-1] + b"?"],
        "gamma": [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"sRGB", b"\0")],
        "density": [chunk(b"pHYs", struct.pack(">IIB", 1, 1000, 1))],
        "odd-palette": [chunk(b"PLTE", bytes(range(6)))],
        "broken-exif": [chunk(b"eXIf", b"MM\0*" + b"\xff" * 40)],
    }
    for name, chunks in strange.items():
        yield Odd(f"png-{name}", write_png(rows, RGB, 8, chunks), SCENE)
    yield Odd("png-late-unknown", write_png(rows, RGB, after=[chunk(b"prVt", bytes(2**20))]), SCENE)
    yield Odd("png-many-pieces", write_png(rows, RGB, piece_bytes=1), SCENE)
    yield Odd("png-empty-piece", write_png(rows, RGB, before=[chunk(b"IDAT", b"")]), SCENE)
    yield Odd("png-without-end", write_png(rows, RGB, end=b""), SCENE)
    yield Odd("png-and-more", write_png(rows, RGB) + b"PK\3\4" * 1000, SCENE)
    black = Image.new("RGB", SCENE.size)
    frames: dict[str, object] = {"save_all": True, "append_images": [black]}
    yield Odd("png-animated", save(SCENE, "PNG", **frames), SCENE)
    yield Odd("png-animated-aside", save(SCENE, "PNG", default_image=True, **frames), SCENE)
