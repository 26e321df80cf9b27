"""PNG without ballast: what is kept, what is passed over, and where the pixels come from."""

import io
import struct

import pytest
from PIL import Image

from server.png import KEPT_CHUNK_LIMIT_BYTES, without_ballast
from tests.server.png_writer import GREY, RGB, SIGNATURE, chunk, header, write_png

ROWS = [[(10, 20, 30)] * 3] * 2


def kinds_in(stream: io.BufferedIOBase) -> list[bytes]:
    """List the chunks of a PNG, each of which must be whole."""
    assert stream.read(8) == SIGNATURE
    kinds = []
    while head := stream.read(8):
        length, kind = struct.unpack(">I4s", head)
        data = stream.read(length)
        assert chunk(kind, data) == head + data + stream.read(4)
        kinds.append(kind)
    return kinds


def survey(data: bytes) -> list[bytes]:
    """List the chunks that are left of a PNG."""
    stream = without_ballast(io.BytesIO(data))
    assert isinstance(stream, io.BufferedIOBase)
    return kinds_in(stream)


def test_only_what_makes_the_picture_is_kept() -> None:
    """Text, private chunks and animation go; late EXIF comes before the pixels."""
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")
    data = write_png(
        ROWS,
        RGB,
        before=[chunk(b"tEXt", b"a\0b"), chunk(b"acTL", bytes(8)), chunk(b"iCCP", b"x\0\0")],
        after=[chunk(b"prVt", b"?"), exif],
        piece_bytes=5,
    )
    kinds = survey(data)
    assert [kind for kind in kinds if kind != b"IDAT"] == [b"IHDR", b"iCCP", b"eXIf", b"IEND"]
    assert kinds.count(b"IDAT") == data.count(b"IDAT") > 1


def test_only_the_first_run_of_pixels_counts() -> None:
    """Image data after another chunk is not image data."""
    late = [chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", b"late")]
    assert survey(write_png(ROWS, RGB, after=late)).count(b"IDAT") == 1


def test_damaged_chunks() -> None:
    """A damaged optional chunk is passed over; a damaged critical one ends it."""
    damaged = chunk(b"iCCP", b"x\0\0")[:-1] + b"?"
    assert b"iCCP" not in survey(write_png(ROWS, RGB, before=[damaged]))
    with pytest.raises(SyntaxError, match="IHDR"):
        without_ballast(io.BytesIO(SIGNATURE + header(3, 2)[:-1] + b"?"))


def test_long_metadata_is_passed_over() -> None:
    """A profile is kept up to the limit and not a byte beyond."""
    for extra, kept in ((0, True), (1, False)):
        profile = chunk(b"iCCP", bytes(KEPT_CHUNK_LIMIT_BYTES + extra))
        assert (b"iCCP" in survey(write_png(ROWS, RGB, before=[profile]))) is kept


@pytest.mark.parametrize(
    ("colour", "depth", "given", "expected"),
    [
        (GREY, 2, (2,), (170,)),
        (GREY, 4, (3,), (51,)),
        (GREY, 4, (900,), (255,)),
        (GREY, 8, (200,), (200,)),
        (GREY, 16, (40_000,), (40_000,)),
        (RGB, 8, (1, 2, 3), (1, 2, 3)),
        (RGB, 16, (0x1234, 0xFF00, 0xFF), (0x12, 0xFF, 0)),
    ],
)
def test_the_clear_colour_is_scaled_like_the_pixels(
    colour: int, depth: int, given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """What Pillow compares with eight-bit samples has eight bits; grey of sixteen stays."""
    samples = struct.Struct(f">{len(given)}H")
    clear = chunk(b"tRNS", samples.pack(*given))
    picture = SIGNATURE + header(3, 2, depth, colour) + clear + chunk(b"IEND", b"")
    assert chunk(b"tRNS", samples.pack(*expected)) in without_ballast(io.BytesIO(picture)).read()


def test_the_stream_can_be_read_anywhere() -> None:
    """Seeking from the start, from here and from the end finds the same bytes."""
    source = io.BytesIO(write_png(ROWS, RGB, piece_bytes=3))
    whole = without_ballast(source).read()
    stream = without_ballast(source)
    for position in range(len(whole) + 1):
        assert stream.seek(position) == stream.tell() == position
        assert stream.read(7) == whole[position : position + 7]
    assert stream.seek(-12, io.SEEK_END) == len(whole) - 12
    stream.seek(-4, io.SEEK_CUR)
    assert stream.read() == whole[-16:]
    with Image.open(without_ballast(source)) as image:
        assert image.getpixel((2, 1)) == (10, 20, 30)
