"""Small colour profiles, written by hand from ICC.1:2001-12 so that tests know what they mean."""

import struct

Matrix = tuple[tuple[float, float, float], ...]

# Columns are the primaries in XYZ, adapted to D50, as the published profiles have them.
DISPLAY_P3: Matrix = (
    (0.51512, 0.29198, 0.15710),
    (0.24120, 0.69225, 0.06657),
    (-0.00105, 0.04189, 0.78407),
)
ADOBE_RGB: Matrix = (
    (0.60974, 0.20528, 0.14919),
    (0.31111, 0.62567, 0.06322),
    (0.01947, 0.06087, 0.74457),
)
SRGB: Matrix = (
    (0.43607, 0.38515, 0.14307),
    (0.22249, 0.71687, 0.06061),
    (0.01392, 0.09708, 0.71410),
)
WHITE_D50 = (0.9642, 1.0, 0.8249)


def make_rgb_profile(matrix: Matrix, gamma: float) -> bytes:
    """Make a display profile of three primaries and one gamma."""
    tags = {b"wtpt": _xyz(WHITE_D50)}
    for column, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = _xyz(tuple(row[column] for row in matrix))
        tags[name + b"TRC"] = _gamma(gamma)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def make_grey_profile(gamma: float) -> bytes:
    """Make a grey profile of one gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(WHITE_D50), b"kTRC": _gamma(gamma)})


def make_cmyk_profile() -> bytes:
    """Make a press whose every ink, whatever its colour, only takes away lightness.

    No ink is white; four full inks are black; each takes a quarter. A picture read with it is
    grey, which no reading without the profile gives.
    """
    ramp = bytes(range(256))
    nodes = b"".join(bytes((255 - 255 * node.bit_count() // 4, 128, 128)) for node in range(16))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + nodes + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(WHITE_D50), b"A2B0": table})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _description(), b"cprt": b"text\0\0\0\0none\0", **tags}
    offset = 128 + 4 + 12 * len(tags)
    index, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        index += struct.pack(">4sII", name, offset + len(body), len(data))
        body += padded
    size = offset + len(body)
    header = struct.pack(">I4xI4s4s4s", size, 0x02400000, kind, space, connection)
    header += bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", *(round(value * 65536) for value in WHITE_D50))
    return header.ljust(128, b"\0") + index + body


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
