"""Reference images made small enough for a language model to look at. No torch.

They are the plain RGB files that the server has decoded already; see docs/ARCHITECTURE.md.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

WHITE = (255, 255, 255)


def side_by_side(paths: Sequence[Path], area_pixels: int) -> Image.Image:
    """Join pictures in one row on white, centred, reduced so that the row has this area at most.

    They are reduced one by one before they are joined: four large ones would not fit into memory
    together. Nothing is ever enlarged. Raises OSError for what is no picture.
    """
    sizes = [size_of(path) for path in paths]
    width, height = sum(width for width, _ in sizes), max(height for _, height in sizes)
    scale = _scale(width, height, area_pixels)
    pictures = [_open(path, scale) for path in paths]
    row = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), WHITE)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, (row.height - picture.height) // 2))
        left += picture.width
    return row


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a picture, by its header. Raises OSError for what is none."""
    with Image.open(path) as opened:
        return opened.size


def open_reduced(path: Path, area_pixels: int) -> Image.Image:
    """Read one picture, reduced to this area at most. Raises OSError for what is no picture."""
    return _open(path, _scale(*size_of(path), area_pixels))


def reduce(picture: Image.Image, area_pixels: int) -> Image.Image:
    """Return the picture in RGB, reduced to this area at most."""
    return _resize(picture.convert("RGB"), _scale(*picture.size, area_pixels))


def _scale(width: int, height: int, area_pixels: int) -> float:
    return min(1.0, math.sqrt(area_pixels / (width * height)))


def _open(path: Path, scale: float) -> Image.Image:
    with Image.open(path) as opened:
        return _resize(opened.convert("RGB"), scale)


def _resize(picture: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return picture
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
