"""A PNG without its ballast: only the chunks that make the picture, with the pixels left on disk.

A valid PNG may carry any number of chunks of any size that have nothing to do with its picture:
text, private data, the later frames of an animation. Pillow reads each of them into memory.
"""

import io
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT_KINDS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf")
KEPT_CHUNK_LIMIT_BYTES = 8 * 2**20
"""A longer chunk of those kinds is passed over like an unknown one."""

_HEAD = struct.Struct(">I4s")
_CRC_BYTES = 4


def without_ballast(source: BinaryIO) -> BinaryIO:
    """Return the PNG in `source` as a stream of its kept chunks, its image data and an end.

    EXIF data that follows the image data is moved before it. `source` must stay open while the
    stream is read. Raises SyntaxError, as Pillow does, when a critical chunk is damaged.
    """
    kept, pixels = _survey(source)
    head = SIGNATURE + b"".join(_chunk(kind, data) for kind, data in kept.items())
    end = _chunk(b"IEND", b"")
    return io.BufferedReader(
        _Spliced(
            (io.BytesIO(head), range(len(head))),
            (source, pixels),
            (io.BytesIO(end), range(len(end))),
        )
    )


def _survey(source: BinaryIO) -> tuple[dict[bytes, bytes], range]:
    """Return the contents of the kept chunks, and where in the file the image data lies.

    The image data is one run of IDAT chunks; the standard allows nothing between them.
    """
    end = source.seek(0, io.SEEK_END)
    position = source.seek(len(SIGNATURE))
    kept: dict[bytes, bytes] = {}
    pixels = range(0)
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        length, kind = _HEAD.unpack(head)
        after = position + _HEAD.size + length + _CRC_BYTES
        if kind == b"IEND":
            break
        if kind == b"IDAT" and (not pixels or pixels.stop == position):
            pixels = range(pixels.start if pixels else position, min(after, end))
        if kind in KEPT_KINDS and kind not in kept and length <= KEPT_CHUNK_LIMIT_BYTES:
            data, checksum = source.read(length), source.read(_CRC_BYTES)
            if _chunk(kind, data)[-_CRC_BYTES:] == checksum:
                kept[kind] = data
            elif kind[:1].isupper():
                raise SyntaxError(f"damaged {kind!r} chunk")
        position = source.seek(after)
    if b"tRNS" in kept:
        kept[b"tRNS"] = _in_eight_bits(kept[b"tRNS"], kept.get(b"IHDR", b""))
    return kept, pixels


def _in_eight_bits(data: bytes, header: bytes) -> bytes:
    """Scale the transparent colour as Pillow scales the pixels that it compares with it.

    Pillow reads grey of two and four bits, and colours of sixteen, as eight bits a sample, but
    leaves the transparent colour as it stands in the file.
    """
    if len(header) < 13:
        return data
    depth, colour_type = header[8], header[9]
    if (depth, colour_type) == (16, 2) and len(data) == 6:
        return struct.pack(">3H", *(sample >> 8 for sample in struct.unpack(">3H", data)))
    if colour_type == 0 and depth in (2, 4) and len(data) == 2:
        (sample,) = struct.unpack(">H", data)
        return struct.pack(">H", min(sample, 2**depth - 1) * 255 // (2**depth - 1))
    return data


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return _HEAD.pack(len(data), kind) + data + struct.pack(">I", checksum)


class _Spliced(io.RawIOBase):
    """Several stretches of several streams, read as one stream."""

    def __init__(self, *parts: tuple[BinaryIO, range]) -> None:
        super().__init__()
        self._parts = parts
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += sum(len(stretch) for _, stretch in self._parts)
        self._position = max(0, offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        offset = self._position
        for stream, stretch in self._parts:
            if offset < len(stretch):
                stream.seek(stretch.start + offset)
                data = stream.read(min(len(view), len(stretch) - offset))
                view[: len(data)] = data
                self._position += len(data)
                return len(data)
            offset -= len(stretch)
        return 0
