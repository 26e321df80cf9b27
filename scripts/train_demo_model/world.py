"""The procedural world: flat shapes on coloured grounds, drawn by code.

A `Scene` says everything that is in a picture and nothing about the words for it; `draw` turns
it into pixels at any size. Positions are fractions of the picture's sides, radii fractions of
its shorter side, so that a scene means the same at every resolution.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 40),
    "green": (35, 150, 60),
    "cyan": (60, 205, 220),
    "blue": (35, 75, 215),
    "purple": (125, 45, 165),
    "pink": (250, 130, 185),
    "brown": (120, 70, 35),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
    "white": (250, 250, 250),
}
"""The named colours. Any other colour of the world is called by its hex code."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "arrow")
"""What can stand in a scene. The arrow is what the demonstration classifier fires on."""

GroundKind = Literal["plain", "gradient", "stripes"]

GROUND_KINDS: tuple[GroundKind, ...] = get_args(GroundKind)

_EDGE = 0.03  # least distance of a thing to the picture's edge, as a fraction of a side
_STRIPES = 8  # stripes across a picture


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: its colour, its centre (fractions of width and height), its radius."""

    shape: str
    colour: RGB
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Ground:
    """What the things stand on; `second` is for gradients and stripes.

    A gradient runs from `first` at the top (or left) to `second`; stripes alternate, beginning
    with `first`. `across` turns both by a quarter: left to right, and standing stripes.
    """

    kind: GroundKind
    first: RGB
    second: RGB
    across: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """A ground and the things on it, in the order in which they are drawn."""

    ground: Ground
    things: tuple[Thing, ...]


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """Draw the scene as an RGB picture with smooth edges; sizes are in pixels."""
    picture = _draw_ground(scene.ground, width, height)
    for thing in scene.things:
        box, mask = _draw_mask(thing, width, height)
        picture.paste(thing.colour, box, mask)
    return picture


def draw_mask(thing: Thing, width: int, height: int) -> Image.Image:
    """Draw one thing alone: white on black, as an 8-bit picture of the whole size."""
    whole = Image.new("L", (width, height), 0)
    box, mask = _draw_mask(thing, width, height)
    whole.paste(mask, box)
    return whole


def fit(x: float, y: float, radius: float, aspect: float) -> tuple[float, float]:
    """Move a centre inward until the thing is within the picture; `aspect` is width / height."""
    half_width = radius * min(1.0, 1 / aspect) + _EDGE
    half_height = radius * min(1.0, aspect) + _EDGE
    return (
        min(max(x, half_width), 1 - half_width),
        min(max(y, half_height), 1 - half_height),
    )


def colour_distance(first: RGB, second: RGB) -> float:
    """How far two colours are apart, from 0 to 1.

    Weighted for the eye as in https://www.compuphase.com/cmetric.htm ("redmean").
    """
    red_mean = (first[0] + second[0]) / 2
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    squared = (2 + red_mean / 256) * red**2 + 4 * green**2 + (2 + (255 - red_mean) / 256) * blue**2
    return math.sqrt(squared) / 764.83


def parse_colour(words: str) -> RGB:
    """Turn a name of the world or a hex code (#RRGGBB) into a colour.

    Raises `ValueError` for anything else.
    """
    if words in COLOURS:
        return COLOURS[words]
    if len(words) == 7 and words[0] == "#":
        value = int(words[1:], 16)
        return (value >> 16, (value >> 8) & 255, value & 255)
    raise ValueError(f"no colour of this world: {words!r}")


def _draw_ground(ground: Ground, width: int, height: int) -> Image.Image:
    if ground.kind == "plain":
        return Image.new("RGB", (width, height), ground.first)
    length = width if ground.across else height
    positions = (np.arange(length) + 0.5) / length
    if ground.kind == "stripes":
        positions = (np.floor(positions * _STRIPES) % 2).astype(np.float64)
    first, second = np.array(ground.first, float), np.array(ground.second, float)
    line = first + (second - first) * positions[:, None]
    line = np.round(line).astype(np.uint8)
    grid = line[None, :, :] if ground.across else line[:, None, :]
    return Image.fromarray(np.broadcast_to(grid, (height, width, 3)).copy(), "RGB")


def _draw_mask(
    thing: Thing, width: int, height: int
) -> tuple[tuple[int, int, int, int], Image.Image]:
    """Draw the thing's coverage where it is, and say where: (left, top, right, bottom)."""
    radius = thing.radius * min(width, height)
    centre = (thing.x * width, thing.y * height)
    left, top = (math.floor(value - radius) - 1 for value in centre)
    side = 2 * math.ceil(radius) + 4
    scale = max(2, math.ceil(192 / side))  # small things need finer sampling
    mask = Image.new("L", (side * scale, side * scale), 0)
    middle = ((centre[0] - left) * scale, (centre[1] - top) * scale)
    _SHAPE_DRAWERS[thing.shape](ImageDraw.Draw(mask), middle, radius * scale)
    return (left, top, left + side, top + side), mask.reduce(scale)


Point = tuple[float, float]


def _polygon(draw: ImageDraw.ImageDraw, centre: Point, radius: float, points: list[Point]) -> None:
    """Draw a polygon given in units of the radius, y downwards."""
    draw.polygon([(centre[0] + radius * x, centre[1] + radius * y) for x, y in points], fill=255)


def _disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float, fill: int = 255) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _circle(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    _disc(draw, centre, radius * 0.92)


def _ring(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    _disc(draw, centre, radius)
    _disc(draw, centre, radius * 0.55, fill=0)


def _square(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    _polygon(draw, centre, radius, [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])


def _triangle(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    _polygon(draw, centre, radius, [(0, -0.95), (1, 0.8), (-1, 0.8)])


def _star(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    points = []
    for corner in range(10):
        reach = 1.0 if corner % 2 == 0 else 0.42
        angle = math.pi * (corner / 5 - 0.5)
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    _polygon(draw, centre, radius, points)


def _heart(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    """The curve x = 16 sin^3 t, of https://mathworld.wolfram.com/HeartCurve.html."""
    points = []
    for index in range(64):
        t = 2 * math.pi * index / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2.5) / 16.5))
    _polygon(draw, centre, radius, points)


def _arrow(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    """An arrow to the right."""
    head = [(0.1, -0.8), (1.0, 0.0), (0.1, 0.8)]
    shaft = [(0.1, 0.3), (-1.0, 0.3), (-1.0, -0.3), (0.1, -0.3)]
    _polygon(draw, centre, radius, head + shaft)


_SHAPE_DRAWERS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "arrow": _arrow,
}
