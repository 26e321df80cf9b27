"""A faint watermark that re-encoding and resizing leave: one bit, "made here".

Spread spectrum in the DCT domain (Cox, Kilian, Leighton, Shamoon 1997, doi:10.1109/83.650120),
found without the original (Barni, Bartolini, Cappellini, Piva 1998,
doi:10.1016/S0165-1684(98)00015-2), and only as strong as the picture asks for, because its score
is known while embedding (Miller, Cox, Bloom 2000, doi:10.1109/ICIP.2000.899260). All of it
happens on a grid of one size to which every picture is reduced, so that resizing moves nothing.

The pattern is public: the mark tells of honest origin, and whoever wants to can take it out.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane: TypeAlias = npt.NDArray[np.float64]
Change: TypeAlias = npt.NDArray[np.float32]

GRID = 256
LOWEST, HIGHEST = 24, 160
"""The ring of frequencies that is used, in half periods of the picture: below it is what the
picture shows, above it what JPEG and smaller copies lose."""

PATTERN_NAME = b"flux2-serve watermark 1"

THRESHOLD = 6.5
"""Scores from here on are a watermark. Of a picture that does not know the pattern the score is a
sum of signs with weights of length 1: by Hoeffding's bound it is that high once in 1.5e9."""

TARGET = 20.0
"""The score to embed with: what re-encoding takes away comes off this."""

STRENGTHS = (0.7, 1.0, 1.4, 2.0)
"""Root mean squares of the change, of 255 levels, tried until the score is reached. The last, at
42 dB, is taken whatever it gives: grass and gravel hide more than they show."""

_SMALLEST_DEVIATION = 2.0
_LARGEST = 3.0
_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What looking for the watermark gave."""

    score: float

    @property
    def is_marked(self) -> bool:
        """Whether the score is that of a picture with the watermark."""
        return self.score >= THRESHOLD


def embed(image: Image.Image) -> Image.Image:
    """Return the RGB picture with the watermark in it; the same picture gives the same result."""
    pixels = np.asarray(image, dtype=np.float32)
    change = _make_change(image.size)
    marked = image
    for strength in STRENGTHS:
        moved = np.clip(np.rint(pixels + strength * change), 0, 255)
        marked = Image.fromarray(moved.astype(np.uint8))
        if detect(marked).score >= TARGET:
            break
    return marked


def detect(image: Image.Image) -> Found:
    """Look for the watermark. Any mode and size will do; a part or a turned picture will not."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=2)
    small = Image.fromarray(pixels).resize((GRID, GRID), Image.Resampling.BOX)
    coefficients = _dct() @ np.asarray(small, dtype=np.float64) @ _dct().T
    # What the picture has most of must not drown the rest.
    whitened = (coefficients / _deviation(coefficients))[_ring()]
    whitened = np.clip(whitened, -_LARGEST, _LARGEST)
    length = max(float(np.linalg.norm(whitened)), 1e-9)
    return Found(round(float(whitened @ _pattern()) / length, 2))


def _make_change(size: tuple[int, int]) -> Change:
    """Return the pattern as a picture (height, width, 1) whose root mean square is 1."""
    coefficients = np.zeros((GRID, GRID))
    coefficients[_ring()] = _pattern()
    plane = Image.fromarray((_dct().T @ coefficients @ _dct()).astype(np.float32))
    change = np.asarray(plane.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    level: Change = (change / np.sqrt(np.mean(np.square(change))))[:, :, np.newaxis]
    return level


def _deviation(coefficients: Plane) -> Plane:
    """Return how large the coefficients around each one are."""
    side = 2 * _WINDOW + 1
    padded = np.pad(np.abs(coefficients), _WINDOW, mode="edge")
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    mean: Plane = np.maximum(total / side**2, _SMALLEST_DEVIATION)
    return mean


@cache
def _dct() -> Plane:
    """Return the orthonormal DCT-II as a matrix."""
    index = np.arange(GRID)
    matrix: Plane = np.cos(np.pi * np.outer(index, 2 * index + 1) / (2 * GRID)) * np.sqrt(2 / GRID)
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def _ring() -> tuple[npt.NDArray[np.intp], ...]:
    rows, columns = np.indices((GRID, GRID))
    radius = np.hypot(rows, columns)
    return np.nonzero((radius >= LOWEST) & (radius <= HIGHEST))


@cache
def _pattern() -> Plane:
    """Return a sign for each place of the ring, the same on every machine and for good."""
    count = _ring()[0].size
    bits = hashlib.shake_256(PATTERN_NAME).digest(-(-count // 8))
    signs = np.unpackbits(np.frombuffer(bits, dtype=np.uint8))[:count]
    return signs.astype(np.float64) * 2 - 1
