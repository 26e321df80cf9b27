"""PNG files of every kind the standard knows, which Pillow cannot write."""

import struct
import zlib
from collections.abc import Sequence

Rows = Sequence[Sequence[tuple[int, ...]]]
"""Pixels by row; a pixel is a tuple of samples of the file's own depth."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Left, top, and steps right and down of each pass."""


def chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk with its length and checksum."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def header(width: int, height: int, depth: int = 8, colour: int = RGB, interlace: int = 0) -> bytes:
    """Make an IHDR chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def write_png(
    rows: Rows,
    colour: int,
    depth: int = 8,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
    *,
    interlaced: bool = False,
    piece_bytes: int = 2**20,
    end: bytes = chunk(b"IEND", b""),
) -> bytes:
    """Write a PNG with chunks before and after its image data, which is cut into pieces."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(
        _pack_rows([row[left::right] for row in rows[top::down]], depth)
        for left, top, right, down in passes
    )
    data = zlib.compress(raw)
    pieces = (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
    return b"".join(
        (
            SIGNATURE,
            header(len(rows[0]), len(rows), depth, colour, int(interlaced)),
            *before,
            *(chunk(b"IDAT", piece) for piece in pieces),
            *after,
            end,
        )
    )


def make_bomb(width: int, height: int) -> bytes:
    """Make a PNG that claims a size and holds next to no data."""
    return b"".join(
        (
            SIGNATURE,
            header(width, height),
            chunk(b"IDAT", zlib.compress(b"\0")),
            chunk(b"IEND", b""),
        )
    )


def _pack_rows(rows: Rows, depth: int) -> bytes:
    return b"".join(b"\0" + _pack_row(row, depth) for row in rows)


def _pack_row(row: Sequence[tuple[int, ...]], depth: int) -> bytes:
    samples = [sample for pixel in row for sample in pixel]
    if depth == 16:
        return struct.pack(f">{len(samples)}H", *samples)
    if depth == 8:
        return bytes(samples)
    bits = "".join(format(sample, f"0{depth}b") for sample in samples)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
