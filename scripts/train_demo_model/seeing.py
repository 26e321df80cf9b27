"""Reads a picture of the world: what its ground is like and which things stand on it.

Nothing here knows what was asked for. The pictures come out of a small diffusion model, so edges
may be wavy, colours a little off, and specks may lie about: a thing is what a person would count
as one, and its shape is the one of the world that it covers best.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from scripts.train_demo_model.meaning import CONTRAST
from scripts.train_demo_model.shapes import Mask, Pixels, recognise
from scripts.train_demo_model.world import RGB

SHORT_SIDE = 256
"""Pictures are read at this length of their shorter side, in pixels."""

NEAR = CONTRAST / 2
"""Colours within this distance are one: the world keeps all that must differ twice as far apart."""

_LEAST_AREA = 0.0015  # of the shorter side squared; the world's smallest thing has 0.004
_LEAST_SHARE = 0.08  # of the largest thing's area; the world's most unequal pair has 0.14
_LEAST_CORE = 12  # pixels of a thing that are not its rim
_LEAST_DEPTH = 1.9  # pixels from the core's edge to its middle
_STEEP = 48.0  # of 255, within 3 pixels: steeper is an edge, and no surface
_FLAT = 0.08  # colours within this distance make an even surface
_MOST_COLOURS = 8  # of things: more of them are noise
_MOST_OF_A_COLOUR = 8  # things: a picture without sense has hundreds, and reading it must end
_BLOCK = np.ones((3, 3), np.uint8)
_DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
_WIDE_DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25))  # a thing's edge is within

cv2.setNumThreads(1)  # on pictures this small, threads cost more than they save


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing in a picture; `shape` is None for what is like no shape of the world.

    The centre is that of the bounding box, in fractions of width and height. `area` is in squares
    of the shorter side. `mask` has the size of the picture as it was read.
    """

    shape: str | None
    likeness: float
    colour: RGB
    x: float
    y: float
    area: float
    mask: Mask


@dataclass(frozen=True, slots=True)
class View:
    """A picture at reading size, and what is in it; the largest thing comes first."""

    pixels: Pixels
    ground: Mask
    things: tuple[Seen, ...]


def look(picture: Image.Image) -> View:
    """Read an RGB picture of any size."""
    pixels = _shrink(picture)
    behind = _fit_ground(pixels)
    from_ground = distances(pixels, behind)
    foreground = from_ground > NEAR
    things = [
        _describe(part, pixels)
        for mask in _find_masks(pixels, behind, foreground, from_ground)
        for part in _split(mask)
    ]
    largest = max((thing.area for thing in things), default=0.0)
    least = max(_LEAST_AREA, _LEAST_SHARE * largest)
    kept = sorted((t for t in things if t.area >= least), key=lambda t: -t.area)
    near_things = foreground.astype(np.uint8)
    for thing in kept:
        near_things |= thing.mask.astype(np.uint8)
    ground = cv2.dilate(near_things, _DISC, iterations=2) == 0
    return View(pixels, ground, tuple(kept))


def distances(pixels: Pixels, colour: Pixels) -> Pixels:
    """Do what `world.colour_distance` does for arrays (..., 3) that broadcast."""
    red_mean = (pixels[..., 0] + colour[..., 0]) / 2
    squares = (pixels - colour) ** 2
    weighted = (
        (2 + red_mean / 256) * squares[..., 0]
        + 4 * squares[..., 1]
        + (2 + (255 - red_mean) / 256) * squares[..., 2]
    )
    result: Pixels = np.sqrt(weighted) / np.float32(764.83)
    return result


def to_rgb(colour: Pixels) -> RGB:
    """Round a colour (3,) to whole numbers."""
    red, green, blue = (round(float(value)) for value in colour)
    return red, green, blue


def _shrink(picture: Image.Image) -> Pixels:
    """Bring the picture to reading size and take the single odd pixel out of it."""
    scale = SHORT_SIDE / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    array = np.asarray(picture.convert("RGB"))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = array if picture.size == size else cv2.resize(array, size, interpolation=method)
    return cv2.medianBlur(np.ascontiguousarray(small), 3).astype(np.float32)


def _fit_ground(pixels: Pixels) -> Pixels:
    """Estimate the colour of the ground at every pixel, also where things cover it.

    Tries an even ground, one that changes downwards only, and one that changes across only, each
    from the picture's rim (where no thing should be) and from the whole of it. The first that
    explains nearly all of the rim wins, or else the one that explains most of it.
    """
    height, width = pixels.shape[:2]
    frame = max(3, round(0.025 * SHORT_SIDE))
    left_right = np.concatenate((pixels[:, :frame], pixels[:, -frame:]), axis=1)
    top_bottom = np.concatenate((pixels[:frame], pixels[-frame:]), axis=0)
    rim = np.zeros((height, width), bool)
    rim[:frame], rim[-frame:], rim[:, :frame], rim[:, -frame:] = True, True, True, True
    on_rim = pixels[rim]
    best, best_share = pixels, -1.0
    for source, axis in (
        (on_rim[None], 1),
        (left_right, 1),
        (top_bottom, 0),
        (pixels[:, ::2], 1),
        (pixels[::2], 0),
    ):
        line = np.median(source, axis=axis, keepdims=True)
        ground: Pixels = np.broadcast_to(line, pixels.shape).astype(np.float32)
        share = float(np.mean(distances(on_rim, ground[rim]) < _FLAT))
        if share > best_share + 0.01:
            best, best_share = ground, share
        if share > 0.98:
            break
    return best


def _find_masks(
    pixels: Pixels, behind: Pixels, foreground: Mask, from_ground: Pixels
) -> list[Mask]:
    """Find the things' masks, colour by colour, the most frequent colour first.

    A blurred rim has the colours between thing and ground, which would pass for things of their
    own. So what lies around a thing and is a mixture of its colour and the ground's counts as
    explained, and is left out of the search for further things.
    """
    masks: list[Mask] = []
    taken = np.zeros_like(foreground)
    left = foreground.copy()
    red, green, blue = cv2.split(cv2.morphologyEx(pixels, cv2.MORPH_GRADIENT, _BLOCK))
    smooth = np.maximum(np.maximum(red, green), blue) < _STEEP
    for _ in range(_MOST_COLOURS):
        colour = _find_colour(pixels, left, smooth)
        if colour is None:
            break
        to_colour = distances(pixels, colour)
        alike = left & (to_colour < NEAR)
        found = [_grow(core, (to_colour < from_ground) & ~taken) for core in _list_cores(alike)]
        masks.extend(found)
        left &= to_colour >= NEAR
        if found:
            together = np.any(found, axis=0)
            taken |= together
            around = cv2.dilate(together.astype(np.uint8), _WIDE_DISC) > 0
            left[around] &= _leave_mixture(pixels[around], behind[around], colour) > _FLAT
    return masks


def _find_colour(pixels: Pixels, left: Mask, smooth: Mask) -> Pixels | None:
    """Give the most frequent colour of what is left, (3,), or None if hardly anything is."""
    points = pixels[left & smooth]
    if len(points) < _LEAST_CORE:
        points = pixels[left]
    if len(points) < _LEAST_CORE:
        return None
    bins = (points // 24).astype(np.int64) @ (1, 16, 256)
    seed = points[bins == np.bincount(bins).argmax()].mean(axis=0)
    colour: Pixels = np.median(points[distances(points, seed) < NEAR], axis=0).astype(np.float32)
    return colour


def _list_cores(mask: Mask) -> list[Mask]:
    """List the largest connected parts that are deep enough to be the inside of a thing."""
    eroded = cv2.erode(mask.astype(np.uint8), _DISC)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(eroded, connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = np.argsort(-areas, kind="stable")[:_MOST_OF_A_COLOUR] + 1
    cores = [labels == label for label in largest if stats[label, cv2.CC_STAT_AREA] >= _LEAST_CORE]
    return [core for core in cores if _depth(core) >= _LEAST_DEPTH]


def _leave_mixture(points: Pixels, behind: Pixels, colour: Pixels) -> Pixels:
    """Measure how far points (n, 3) are from any mixture of a colour and what is behind them."""
    way = colour - behind
    share = np.sum((points - behind) * way, axis=1) / np.maximum(np.sum(way * way, axis=1), 1)
    return distances(points, behind + np.clip(share, 0, 1)[:, None] * way)


def _depth(mask: Mask) -> float:
    """Measure how far the deepest pixel is from the edge, in pixels."""
    return float(cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3).max())


def _grow(core: Mask, like_it: Mask) -> Mask:
    """Grow a core to the edge half-way to the ground; `like_it` is where it may grow."""
    reach = cv2.dilate(core.astype(np.uint8), _WIDE_DISC) > 0
    allowed = (like_it & reach) | core
    _, labels = cv2.connectedComponents(allowed.astype(np.uint8), connectivity=4)
    grown: Mask = labels == labels[core][0]
    return grown


def _split(mask: Mask) -> list[Mask]:
    """Part equal things that touch, if what they make together is no shape and the parts are."""
    if recognise(mask)[0] is not None:
        return [mask]
    for width in (2, 4, 6):
        eroded = cv2.erode(mask.astype(np.uint8), _DISC, iterations=width)
        count, labels = cv2.connectedComponents(eroded)
        parts = []
        for label in range(1, count):
            part = (labels == label).astype(np.uint8)
            parts.append((cv2.dilate(part, _DISC, iterations=width) > 0) & mask)
        if len(parts) > 1 and all(recognise(part)[0] is not None for part in parts):
            return parts
    return [mask]


def _describe(mask: Mask, pixels: Pixels) -> Seen:
    height, width = mask.shape
    left, top, across, down = cv2.boundingRect(mask.astype(np.uint8))
    inner = cv2.erode(mask.astype(np.uint8), _DISC, iterations=2) > 0
    colour = np.median(pixels[inner if inner.sum() > 8 else mask], axis=0)
    shape, likeness = recognise(mask)
    return Seen(
        shape,
        likeness,
        to_rgb(colour),
        (left + across / 2) / width,
        (top + down / 2) / height,
        float(mask.sum()) / SHORT_SIDE**2,
        mask,
    )
