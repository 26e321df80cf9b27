"""Which denoising steps a level computes: data, made of the level and the number of steps alone.

`none` and `regular` compute every step; they differ in the precision of the weights (see
`pipelines.quantisation`). `high` leaves steps out: there the transformer's blocks do not run, and
what they would have added is extrapolated from the steps that were computed. Nothing is measured
while an image is made, so the same request gives the same image whatever else runs, and no step
waits for the device to tell the host anything.
"""

from pipelines.types import Acceleration

FIRST_COMPUTED = 5
"""The first steps settle the picture's layout: `high` computes all of these, and the last one."""

LEAST_STEPS = 12
"""With fewer steps than this every one counts, and `high` computes them all."""

_COMPUTED_BETWEEN = 5 / 22
"""Of the steps in between: 11 of 28 are computed, as cache-dit's mask "fast" does."""

_SPREAD = 1.15
"""Above 1, the gaps grow towards the end, where the picture changes least."""


def compute_mask(acceleration: Acceleration, steps: int) -> tuple[bool, ...]:
    """Say of each step whether the blocks run in it.

    The first and the last are always computed. Equal arguments give equal masks.
    """
    if acceleration is not Acceleration.HIGH or steps < LEAST_STEPS:
        return (True,) * steps
    first, last = FIRST_COMPUTED - 1, steps - 1
    between = round((last - first - 1) * _COMPUTED_BETWEEN)
    shares = ((k / (between + 1)) ** _SPREAD for k in range(1, between + 1))
    computed = {*range(FIRST_COMPUTED), last}
    computed.update(first + round((last - first) * share) for share in shares)
    return tuple(step in computed for step in range(steps))
