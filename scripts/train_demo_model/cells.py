"""What each cell of the text encoder's sketch says: which thing is near, and where its edge runs.

What covers a cell's parts is what a picture needs, but a small network says it only roughly: it is
a step. How far the thing's edge is, inwards or outwards, is smooth nearly everywhere, and says the
same (as in https://arxiv.org/abs/1901.05103). It follows from the shape and from where the thing's
middle lies, measured in its radius, which is a straight line of the place. So a cell says these.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, pixel_unshuffle

from scripts.train_demo_model.vae import to_pixels
from scripts.train_demo_model.world import SHAPES, Scene, draw, draw_mask

CELLS = 16
"""A sketch of the picture is laid out in so many rows of so many cells, one token each."""

_PARTS = 2  # for how many rows of how many parts a cell says how far an edge is
CELL_SHARES = len(SHAPES)
"""The first of what a cell says are shares from 0 to 1: of which shape is what is near."""

CELL_WIDTH = CELL_SHARES + 12 + _PARTS**2

_REACH, _MARGIN = 1.3, 1.5 / CELLS  # a thing is near within so many radii and so much of the side
_PART_PIXELS = 8  # of a part, where distances are measured
_FAR_EDGE = 3.0  # parts: an edge that is further says no more than that
_UNIT_RADIUS = 0.1  # of the side: things of this radius have a fineness of 1
_THING_WEIGHT, _EDGE_WEIGHT = 3.0, 10.0
_FAR_WEIGHT = 0.1  # of what is said of the nearest thing, where none is near


def cut_cells(scenes: Sequence[Scene]) -> torch.Tensor:
    """Draw scenes small and cut them: (B, cells, `CELL_WIDTH`).

    First the shares: of which shape the near thing is, if there is one. Then colours in [-1, 1]: of
    the picture, of the ground, of the near thing. Then where the cell's middle lies from that
    thing's, right and down, in units of its radius, and how fine the thing is; what is said of a
    thing is 0 where none is near. Last how far the next edge is from the middle of each part of the
    cell, from -1 deep in a thing to 1 far from all.
    """
    near = torch.stack([_describe_nearest(scene) for scene in scenes])
    grounds = [Scene(scene.ground, ()) for scene in scenes]
    edges = torch.stack([_measure_edges(scene) for scene in scenes])
    parts = (
        near[:, :CELL_SHARES],
        *(to_pixels([draw(scene, CELLS, CELLS) for scene in drawn]) for drawn in (scenes, grounds)),
        near[:, CELL_SHARES:],
        pixel_unshuffle(edges[:, None], _PARTS),
    )
    return torch.cat([part.flatten(2).transpose(1, 2) for part in parts], dim=2)


def cells_loss(said: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the shares plus squared errors of all else; what is said is logits, values.

    Both are (B, cells, `CELL_WIDTH`).
    """
    error = (said - shown).square()[..., CELL_SHARES:]
    colours, thing, edges = torch.split(error, [6, 6, _PARTS**2], dim=-1)
    shares = binary_cross_entropy_with_logits(said[..., :CELL_SHARES], shown[..., :CELL_SHARES])
    weight = _FAR_WEIGHT + shown[..., :CELL_SHARES].sum(dim=-1)
    weight = weight / weight.sum()
    of_thing = _THING_WEIGHT * thing.mean(dim=-1) + _EDGE_WEIGHT * edges.mean(dim=-1)
    return shares + colours.mean() + (weight * of_thing).sum()


def _measure_edges(scene: Scene) -> torch.Tensor:
    """Measure from the middle of each part how far the next edge is (rows, columns of parts)."""
    side = CELLS * _PARTS * _PART_PIXELS
    inside = np.zeros((side, side), np.uint8)
    for thing in scene.things:
        inside |= (np.asarray(draw_mask(thing, side, side)) > 127).astype(np.uint8)
    if not inside.any():
        return torch.ones(CELLS * _PARTS, CELLS * _PARTS)
    outwards, inwards = (
        cv2.distanceTransform(where, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for where in (1 - inside, inside)
    )
    distances = torch.from_numpy(outwards - inwards)[None] / _PART_PIXELS / _FAR_EDGE
    first = _PART_PIXELS // 2 - 1  # of the two pixels in the middle of a part
    middles = avg_pool2d(distances[:, first:, first:], kernel_size=2, stride=_PART_PIXELS)
    return middles[0].clamp(-1, 1)


def _describe_nearest(scene: Scene) -> torch.Tensor:
    """Say of each cell which thing is near (shapes + 6, rows, columns): shape, colour, offset."""
    said = torch.zeros(CELL_SHARES + 6, CELLS, CELLS)
    middles = (torch.arange(CELLS) + 0.5) / CELLS
    nearest = torch.full((CELLS, CELLS), torch.inf)
    for thing in scene.things:
        right = ((middles - thing.x) / thing.radius).expand(CELLS, -1)
        down = ((middles - thing.y) / thing.radius)[:, None].expand(-1, CELLS)
        distance = (right.square() + down.square()).sqrt()
        here = (distance < nearest) & (distance < _REACH + _MARGIN / thing.radius)
        nearest = torch.where(here, distance, nearest)
        shape = torch.tensor([float(name == thing.shape) for name in SHAPES])
        colour = torch.tensor(thing.colour) / 127.5 - 1
        fineness = torch.full_like(right, _UNIT_RADIUS / thing.radius)
        constant = torch.cat([shape, colour])[:, None, None].expand(-1, CELLS, CELLS)
        said = torch.where(here, torch.cat([constant, torch.stack([right, down, fineness])]), said)
    return said
