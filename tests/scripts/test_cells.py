"""What a sketch's cells say: the near thing's shape and colour, its middle, and its edge."""

import pytest
import torch

from scripts.train_demo_model.cells import CELL_SHARES, CELL_WIDTH, CELLS, cells_loss, cut_cells
from scripts.train_demo_model.world import SHAPES, Ground, Scene, Thing

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
GROUND = Ground("plain", GREEN, GREEN)
CIRCLE = Thing("circle", RED, 0.25, 0.5, 0.1)
STAR = Thing("star", BLUE, 0.75, 0.5, 0.2)
PICTURE, BEHIND, COLOUR, OFFSET, FINENESS, EDGES = (
    slice(CELL_SHARES + start, CELL_SHARES + start + size)
    for start, size in ((0, 3), (3, 3), (6, 3), (9, 2), (11, 1), (12, 4))
)


def cell_at(said: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Return what the cell says that a point of the picture is in."""
    return said[0, int(y * CELLS) * CELLS + int(x * CELLS)]


def test_a_cell_says_which_thing_is_near() -> None:
    """Each thing has its shape and colour around itself, and nothing is near in a corner."""
    said = cut_cells([Scene(GROUND, (CIRCLE, STAR))])
    assert said.shape == (1, CELLS * CELLS, CELL_WIDTH)
    for thing in (CIRCLE, STAR):
        cell = cell_at(said, thing.x, thing.y)
        assert cell[:CELL_SHARES].tolist() == [float(name == thing.shape) for name in SHAPES]
        torch.testing.assert_close(cell[COLOUR], torch.tensor(thing.colour) / 127.5 - 1)
        assert cell[FINENESS].item() == pytest.approx(0.1 / thing.radius)
    corner = cell_at(said, 0.01, 0.01)
    assert not corner[:CELL_SHARES].any()
    assert not corner[COLOUR.start : EDGES.start].any()
    assert corner[EDGES].tolist() == [1.0] * 4


def test_a_cell_says_how_far_and_where_the_middle_is() -> None:
    """In units of the radius, right and down, from the cell's own middle."""
    said = cut_cells([Scene(GROUND, (STAR,))])
    column, row = 14, 6
    expected = [((place + 0.5) / CELLS - at) / 0.2 for place, at in ((column, 0.75), (row, 0.5))]
    assert said[0, row * CELLS + column, OFFSET].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_cell_says_what_colour_it_has_and_what_is_behind() -> None:
    """The ground's colour is known under things too."""
    said = cut_cells([Scene(GROUND, (CIRCLE, STAR))])
    for thing in (CIRCLE, STAR):
        cell = cell_at(said, thing.x, thing.y)
        torch.testing.assert_close(cell[PICTURE], torch.tensor(thing.colour) / 127.5 - 1)
        torch.testing.assert_close(cell[BEHIND], torch.tensor(GREEN) / 127.5 - 1)


def test_a_cell_says_how_far_the_edge_is() -> None:
    """In parts of a cell, three of which are 1: inside below zero, outside above, zero between."""
    square = Thing("square", RED, 0.5, 0.5, 0.25 / 0.82)  # from a quarter to three quarters
    said = cut_cells([Scene(GROUND, (square,))])[0, :, EDGES]
    row = said.view(CELLS, CELLS, 2, 2)[CELLS // 2, :, 0].flatten()
    expected = [min(max(7.5 - part, -3), 3) / 3 for part in range(CELLS)]
    assert row[:CELLS].tolist() == pytest.approx(expected, abs=0.05)
    torch.testing.assert_close(row.flip(0), row, atol=0.05, rtol=0)
    assert cut_cells([Scene(GROUND, ())])[0, :, EDGES].min() == 1


def test_the_loss_minds_offsets_mostly_where_a_thing_is_near() -> None:
    """The same mistake costs eleven times as much beside a thing as far away from all."""
    shown = cut_cells([Scene(GROUND, (CIRCLE,))])
    perfect = torch.cat([torch.logit(shown[..., :CELL_SHARES], 1e-6), shown[..., CELL_SHARES:]], 2)
    near = torch.arange(CELLS * CELLS) == CELLS * CELLS // 2 + CELLS // 4
    far = torch.arange(CELLS * CELLS) == 0
    costs = []
    for where in (near, far):
        said = perfect.clone()
        said[0, where, EDGES] += 1
        costs.append(float(cells_loss(said, shown) - cells_loss(perfect, shown)))
    assert costs[0] == pytest.approx(11 * costs[1], rel=1e-3)
