"""Which steps are computed: the masks themselves, and the rules that they follow."""

import pytest

from pipelines.acceleration import FIRST_COMPUTED, LEAST_STEPS, compute_mask
from pipelines.types import Acceleration

HIGH_MASKS = {
    12: "xxxxx..x...x",
    13: "xxxxx.x..x..x",
    14: "xxxxx..x..x..x",
    16: "xxxxx..x...x...x",
    20: "xxxxx..x...x...x...x",
    28: "xxxxx..x...x..x...x....x...x",
    30: "xxxxx..x...x...x....x...x....x",
    40: "xxxxx..x..x...x...x...x...x...x....x...x",
    50: "xxxxx..x..x...x...x...x...x....x...x....x...x....x",
}
"""What `high` computes (x) and extrapolates (.) at some numbers of steps."""


@pytest.mark.parametrize("steps", HIGH_MASKS)
def test_high_leaves_out_these_steps(steps: int) -> None:
    """A mask is data: whoever changes one changes every image of that level."""
    mask = compute_mask(Acceleration.HIGH, steps)
    assert "".join("x" if computed else "." for computed in mask) == HIGH_MASKS[steps]


@pytest.mark.parametrize("steps", range(LEAST_STEPS, 51))
def test_high_never_leaves_out_the_first_steps_or_the_last(steps: int) -> None:
    """Nor does it leave more than four between two that are computed."""
    mask = compute_mask(Acceleration.HIGH, steps)
    assert len(mask) == steps
    assert all(mask[:FIRST_COMPUTED])
    assert mask[-1]
    assert sum(mask) < steps
    words = "".join("x" if computed else "." for computed in mask)
    assert "....." not in words


@pytest.mark.parametrize(
    ("level", "counts"),
    [
        (Acceleration.NONE, range(1, 51)),
        (Acceleration.REGULAR, range(1, 51)),
        (Acceleration.HIGH, range(1, LEAST_STEPS)),
    ],
)
def test_everything_else_computes_all_steps(level: Acceleration, counts: range) -> None:
    """Other levels, and few steps at any level."""
    assert all(compute_mask(level, steps) == (True,) * steps for steps in counts)
