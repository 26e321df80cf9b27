"""Judges colours and grounds: whether what is seen is what the words say."""

import numpy as np
import numpy.typing as npt

from scripts.train_demo_model.meaning import GroundWords
from scripts.train_demo_model.seeing import NEAR, View, distances, to_rgb
from scripts.train_demo_model.shapes import Mask, Pixels
from scripts.train_demo_model.world import COLOURS, RGB, colour_distance, parse_colour

_EVEN = 0.08  # pixels within this distance of their line's colour make an even line
_MOST = 0.8  # the share of the ground that has to be as asked
_END = 0.06  # of the side: how much of it is a gradient's end
_UNSTEADY = 0.15  # mean distance from a steady course; a hard step from end to end has 0.25
_LEAST_STRIPES = 4  # of eight: the prompt does not say how many, but two bands are no stripes
_LEAST_BAND = 0.02  # of the side: thinner bands are blurred edges

Line = npt.NDArray[np.float32]


def is_colour(seen: RGB, words: str) -> bool:
    """Whether a colour is what a name of the world or a hex code says.

    It is if it is within `NEAR` of that colour, or if no other name fits it better.
    """
    if colour_distance(seen, parse_colour(words)) <= NEAR:
        return True
    return words in COLOURS and words == min(
        COLOURS, key=lambda name: colour_distance(seen, COLOURS[name])
    )


def shows_ground(view: View, words: GroundWords) -> bool:
    """Whether the picture's ground is of the kind, colours and direction that the words say."""
    if np.mean(view.ground) < 0.05:
        return False
    if words.kind == "plain":
        return _is_plain(view, words.first)
    # Lines on which the ground keeps one colour become the rows of what is judged.
    pixels = view.pixels.transpose(1, 0, 2) if words.across else view.pixels
    ground = view.ground.T if words.across else view.ground
    line, evenness = _read_lines(pixels, ground)
    if evenness < _MOST:
        return False
    if words.kind == "gradient":
        return _is_gradient(line, words.first, words.second or "")
    return _is_striped(line, words.first, words.second or "")


def _is_plain(view: View, words: str) -> bool:
    on_ground = view.pixels[view.ground]
    colour = np.median(on_ground, axis=0).astype(np.float32)
    if np.mean(distances(on_ground, colour) < _EVEN) < _MOST:
        return False
    return is_colour(to_rgb(colour), words)


def _read_lines(pixels: Pixels, ground: Mask) -> tuple[Line, float]:
    """Give each row's colour (rows, 3), without rows hidden by things, and how even rows are."""
    colours, near, total = [], 0, 0
    for row, free in zip(pixels, ground, strict=True):
        points = row[free]
        if len(points) < 4:
            continue
        colour = np.median(points, axis=0).astype(np.float32)
        colours.append(colour)
        near += int(np.sum(distances(points, colour) < _EVEN))
        total += len(points)
    return np.stack(colours), near / total


def _is_gradient(line: Line, first: str, second: str) -> bool:
    """Whether both ends have their colours, and the way between them is steady."""
    end = max(1, round(_END * len(line)))
    start_colour, end_colour = np.median(line[:end], axis=0), np.median(line[-end:], axis=0)
    if not (is_colour(to_rgb(start_colour), first) and is_colour(to_rgb(end_colour), second)):
        return False
    whole = end_colour - start_colour
    progress = (line - start_colour) @ whole / max(float(whole @ whole), 1.0)
    steady = np.linspace(0, 1, len(line))
    return float(np.mean(np.abs(progress - steady))) <= _UNSTEADY


def _is_striped(line: Line, first: str, second: str) -> bool:
    """Whether both colours take turns; which of them begins does not matter."""
    to_first, to_second = (
        distances(line, np.array(parse_colour(words), np.float32)) for words in (first, second)
    )
    is_first = to_first < to_second
    bands = []
    for chosen, words in ((is_first, first), (~is_first, second)):
        if np.mean(chosen) < 0.2:
            return False
        colour = np.median(line[chosen], axis=0).astype(np.float32)
        if not is_colour(to_rgb(colour), words):
            return False
        bands.append(distances(line, colour) < NEAR)
    if np.mean(bands[0] | bands[1]) < _MOST:
        return False
    edges = np.flatnonzero(np.diff(is_first.astype(np.int8))) + 1
    lengths = np.diff(np.concatenate(([0], edges, [len(line)])))
    return int(np.sum(lengths >= _LEAST_BAND * len(line))) >= _LEAST_STRIPES
