"""How long and on what each stage trains: the recipes that the command offers."""

from dataclasses import dataclass

from scripts.train_demo_model.transformer import FlowStage, Kind


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps of every stage; the flow's stages follow one another."""

    text_steps: int
    vae_steps: int
    flow: tuple[FlowStage, ...]
    flash_kinds: tuple[Kind, ...]
    flash_steps: int
    classifier_steps: int


def _kinds(*rows: tuple[int, int, int, int, float], times: int = 1) -> tuple[Kind, ...]:
    """Read (width, height, references, examples, share) rows; `times` as many examples."""
    return tuple(Kind(w, h, r, times * count, share) for w, h, r, count, share in rows)


_SMALL = (
    (128, 128, 0, 32, 4.0),
    (192, 192, 0, 20, 2.0),
    (256, 256, 0, 16, 2.5),
    (256, 192, 0, 20, 1.0),
    (192, 256, 0, 20, 1.0),
    (128, 128, 1, 24, 2.5),
    (192, 192, 1, 12, 1.5),
    (256, 256, 1, 8, 1.0),
    (128, 128, 2, 16, 1.0),
    (192, 192, 2, 8, 0.5),
)
_LARGE = (
    (256, 256, 0, 16, 1.5),
    (384, 384, 0, 10, 2.0),
    (512, 512, 0, 6, 3.0),
    (1024, 768, 0, 1, 0.6),
    (768, 1024, 0, 1, 0.3),
    (256, 256, 1, 8, 1.5),
    (512, 512, 1, 3, 1.5),
    (256, 256, 2, 6, 0.7),
    (512, 512, 2, 2, 0.5),
)
_GUIDANCE = (0.0, 8.0)

RECIPES = {
    # Two cores, some hours. Its flow has not been run to the end yet.
    "cpu": Recipe(
        text_steps=1700,
        vae_steps=1000,
        flow=(
            FlowStage(_kinds(*_SMALL), 2600, 1.5e-3, 0.03),
            FlowStage(_kinds(*_LARGE), 900, 8e-4, 0.3),
            FlowStage(_kinds(*_LARGE), 250, 3e-4, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((256, 256, 0, 8, 2.0), (512, 512, 0, 2, 1.0), (256, 256, 1, 4, 1.0)),
        flash_steps=200,
        classifier_steps=1500,
    ),
    # One card: the same stages, longer and with larger batches. Nobody has run it yet.
    "cuda": Recipe(
        text_steps=6000,
        vae_steps=8000,
        flow=(
            FlowStage(_kinds(*_SMALL, times=4), 20000, 1.5e-3, 0.03),
            FlowStage(_kinds(*_LARGE, times=4), 12000, 8e-4, 0.3),
            FlowStage(_kinds(*_LARGE, times=4), 3000, 3e-4, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((256, 256, 0, 32, 2.0), (512, 512, 0, 16, 2.0), (512, 512, 1, 8, 1.0)),
        flash_steps=2000,
        classifier_steps=4000,
    ),
    # Seconds, nothing learned: shows that every stage runs.
    "try": Recipe(
        text_steps=2,
        vae_steps=2,
        flow=(
            FlowStage(_kinds((64, 64, 0, 2, 1.0), (64, 64, 1, 2, 1.0)), 2, 1e-3, 0.0),
            FlowStage(_kinds((64, 64, 2, 2, 1.0)), 2, 1e-3, 1.0, _GUIDANCE),
        ),
        flash_kinds=_kinds((64, 64, 0, 2, 1.0)),
        flash_steps=2,
        classifier_steps=2,
    ),
}
