"""Where the demonstration checkpoint lies: a small FLUX.2 that draws shapes, shipped with the code.

Nothing heavy is imported here, so that the server may ask too. How it was trained, what it draws
and how well is in the README.md of its folder and in `scripts/train_demo_model`.
"""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).resolve().parent / "demo_checkpoint"
"""A model folder in the diffusers layout, as any other."""

DEMO_SUBJECTS = (
    "circles, squares, triangles, stars, hearts, rings and arrows in any colour on plain, "
    "gradient or striped grounds"
)
"""All that it can draw, in words for people."""


def is_demo_checkpoint(folder: Path) -> bool:
    """Say whether this is the demonstration checkpoint's folder, by whatever path."""
    return folder.resolve() == DEMO_CHECKPOINT
