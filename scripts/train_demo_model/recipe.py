"""How long and on what each stage trains: the recipes that the command offers."""

from dataclasses import dataclass

from scripts.train_demo_model.transformer import FlowStage, Kind


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps of every stage; the flow's stages follow one another."""

    text_steps: int
    vae_steps: int
    decoder_steps: int
    flow: tuple[FlowStage, ...]
    flash_kinds: tuple[Kind, ...]
    flash_steps: int
    classifier_steps: int


def _kinds(*rows: tuple[int, int, int, int, float, int], times: int = 1) -> tuple[Kind, ...]:
    """Read (width, height, references, examples, share, thin) rows; `times` as many examples."""
    return tuple(Kind(w, h, r, times * count, share, thin) for w, h, r, count, share, thin in rows)


# First one token of four, of many examples; then all of fewer; then edits, which are learned last.
_DENSE = (
    (512, 512, 0, 8, 4.0, 2),
    (512, 512, 1, 6, 2.0, 2),
    (512, 512, 2, 4, 0.6, 2),
    (1024, 768, 0, 6, 0.4, 4),
)
_WHOLE = (
    (512, 512, 0, 3, 4.0, 1),
    (512, 512, 1, 2, 2.0, 1),
    (512, 512, 2, 1, 0.5, 1),
    (1024, 768, 0, 1, 0.3, 1),
)
_EDITS = (
    (512, 512, 0, 3, 2.4, 1),
    (512, 512, 1, 6, 4.6, 2),
    (512, 512, 1, 2, 1.0, 1),
    (512, 512, 2, 4, 1.0, 2),
    (512, 512, 2, 1, 0.2, 1),
)
_GUIDED = (
    (512, 512, 0, 2, 4.0, 1),
    (512, 512, 1, 1, 2.0, 1),
    (512, 512, 2, 1, 0.5, 1),
    (1024, 768, 0, 1, 0.3, 1),
)
_GUIDANCE = (0.0, 8.0)

RECIPES = {
    # Two cores, some hours. Its stages were tried one by one, never yet from end to end.
    "cpu": Recipe(
        text_steps=3000,
        vae_steps=1300,
        decoder_steps=600,
        flow=(
            FlowStage(_kinds(*_DENSE), 700, 1.4e-3, 0.05),
            FlowStage(_kinds(*_WHOLE), 1150, 8e-4, 0.1),
            FlowStage(_kinds(*_EDITS), 1450, 9e-4, 0.1),
            FlowStage(_kinds(*_GUIDED), 110, 3e-4, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((512, 512, 0, 2, 3.0, 1), (512, 512, 1, 1, 1.0, 1)),
        flash_steps=100,
        classifier_steps=3000,
    ),
    # One card: the same stages, longer and with larger batches. Nobody has run it yet.
    "cuda": Recipe(
        text_steps=6000,
        vae_steps=8000,
        decoder_steps=4000,
        flow=(
            FlowStage(_kinds(*_DENSE, times=4), 4000, 1.4e-3, 0.05),
            FlowStage(_kinds(*_WHOLE, times=8), 12000, 8e-4, 0.5),
            FlowStage(_kinds(*_EDITS, times=8), 6000, 8e-4, 0.5),
            FlowStage(_kinds(*_GUIDED, times=8), 3000, 3e-4, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((512, 512, 0, 16, 3.0, 1), (512, 512, 1, 8, 1.0, 1)),
        flash_steps=2000,
        classifier_steps=4000,
    ),
    # Seconds, nothing learned: shows that every stage runs.
    "try": Recipe(
        text_steps=2,
        vae_steps=2,
        decoder_steps=2,
        flow=(
            FlowStage(_kinds((64, 64, 0, 2, 1.0, 1), (64, 64, 1, 2, 1.0, 2)), 2, 1e-3, 0.0),
            FlowStage(_kinds((64, 64, 2, 2, 1.0, 1)), 2, 1e-3, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((64, 64, 0, 2, 1.0, 2)),
        flash_steps=2,
        classifier_steps=2,
    ),
}
