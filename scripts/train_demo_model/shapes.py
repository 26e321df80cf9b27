"""Tells the shapes of the world apart, by how well a mask covers each of them."""

import functools

import cv2
import numpy as np
import numpy.typing as npt

from scripts.train_demo_model.world import SHAPES, Thing, draw_mask

Pixels = npt.NDArray[np.float32]  # mostly (height, width, 3) in [0, 255]
Mask = npt.NDArray[np.bool_]  # (height, width)

_LIKENESS = 0.8  # least overlap with a shape of the world; the worst exact render has 0.9
_CANVAS = 64  # pixels a side on which shapes are compared
_CANVAS_AREA = 900.0  # of a shape on that canvas, in pixels


def recognise(mask: Mask) -> tuple[str | None, float]:
    """Say which shape a mask has, and its overlap (IoU) with that shape.

    The mask is brought to the same area and centre of mass as the shapes, and compared with
    slightly stretched, scaled and shifted ones. None if no shape is like it.
    """
    left, top, across, down = cv2.boundingRect(mask.astype(np.uint8))
    small = mask[top : top + down, left : left + across]
    around = [_normalise(small, dx, dy) for dx in (-1.5, 0, 1.5) for dy in (-1.5, 0, 1.5)]
    masks = np.stack([canvas.ravel() for canvas in around], axis=1)  # (pixels, 9)
    templates, areas = _templates()
    both = templates @ masks
    union = areas[:, None] + masks.sum(axis=0)[None] - both
    overlaps = (both / union).reshape(len(SHAPES), -1).max(axis=1)
    best = int(np.argmax(overlaps))
    likeness = float(overlaps[best])
    return (SHAPES[best] if likeness >= _LIKENESS else None), likeness


@functools.cache
def _templates() -> tuple[Pixels, Pixels]:
    """Draw every shape of the world in all variants, as rows of zeros and ones; also their sums."""
    rows = []
    for shape in SHAPES:
        mask = np.asarray(draw_mask(Thing(shape, (0, 0, 0), 0.5, 0.5, 0.4), 256, 256)) > 127
        rows += [
            _normalise(mask, 0, 0, scale, stretch).ravel()
            for scale in (0.94, 1.0, 1.06)
            for stretch in (0.88, 1.0, 1.14)
        ]
    templates = np.stack(rows)
    return templates, templates.sum(axis=1)


def _normalise(
    mask: Mask, dx: float, dy: float, scale: float = 1.0, stretch: float = 1.0
) -> Pixels:
    """Draw the mask at the standard area around the middle of the canvas, moved by (dx, dy).

    `stretch` is how much wider than high it becomes, at an unchanged area.
    """
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    size = scale * (_CANVAS_AREA / moments["m00"]) ** 0.5
    wide, high = size * stretch**0.5, size / stretch**0.5
    middle = (_CANVAS - 1) / 2
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    turn = np.array([[wide, 0, middle + dx - wide * x], [0, high, middle + dy - high * y]])
    drawn = cv2.warpAffine(mask.astype(np.float32), turn, (_CANVAS, _CANVAS))
    return (drawn > 0.5).astype(np.float32)
