"""Draws shares over thresholds, both from 0 to 1: a plot with no plotting library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _SCALE = 720, 480, 2  # drawn at twice the size, and reduced to smooth the lines
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_TEXT_PIXELS, _TICKS = 15, 5
_PAPER, _INK, _GRID = "white", "#202020", "#d8d8d8"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of the plot, through points of x and y from 0 to 1."""

    name: str
    colour: str
    points: Sequence[Point]


def draw_plot(path: Path, curves: Sequence[Curve], mark: float) -> None:
    """Draw the curves with their names, and an upright line at `mark`; save it as PNG."""
    size = (_WIDTH * _SCALE, _HEIGHT * _SCALE)
    plot = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(plot)
    font = ImageFont.load_default(_TEXT_PIXELS * _SCALE)
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        pen.line((_place((share, 0)), _place((share, 1))), fill=_GRID, width=_SCALE)
        pen.line((_place((0, share)), _place((1, share))), fill=_GRID, width=_SCALE)
        x, y = _place((share, 0))
        pen.text((x, y + 8 * _SCALE), f"{share:.1f}", _INK, font, anchor="mt")
        x, y = _place((0, share))
        pen.text((x - 8 * _SCALE, y), f"{share:.0%}", _INK, font, anchor="rm")
    pen.line((_place((mark, 0)), _place((mark, 1))), fill=_INK, width=_SCALE)
    x, y = _place((0.5, 0))
    text = f"threshold (the line: {mark:g}, as set)"
    pen.text((x, y + 32 * _SCALE), text, _INK, font, anchor="mt")
    for index, curve in enumerate(curves):
        pen.line([_place(point) for point in curve.points], curve.colour, 3 * _SCALE)
        corner = ((_LEFT + index * 250) * _SCALE, _TOP // 2 * _SCALE)
        pen.line((corner, (corner[0] + 30 * _SCALE, corner[1])), curve.colour, 3 * _SCALE)
        pen.text((corner[0] + 38 * _SCALE, corner[1]), curve.name, _INK, font, anchor="lm")
    plot.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(path)


def _place(point: Point) -> Point:
    """Return where on the enlarged paper a point of the plot lies."""
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return (_LEFT + point[0] * across) * _SCALE, (_TOP + (1 - point[1]) * up) * _SCALE
