"""Which transformer makes a request, for every set of transformers that a card may hold."""

import pytest
from torch import nn

from pipelines.denoiser import Denoiser
from pipelines.errors import FlashUnavailableError
from pipelines.transformers import Transformers, Tree
from pipelines.types import Acceleration, FlashSchedule, GenerationSettings, Precision


def make_tree(precision: Precision, lora: str = "none") -> Tree:
    """Make a tree that is never run."""
    return Tree(denoiser=Denoiser(nn.Identity()), precision=precision, lora=lora)


EXACT, FAST = make_tree(Precision.BFLOAT16), make_tree(Precision.FP8)
FLASH = make_tree(Precision.FP8, "turbo")
BOTH = Transformers(exact=EXACT, fast=FAST, flash=FLASH)
LEVELS = tuple(Acceleration)


def settings(
    level: Acceleration = Acceleration.REGULAR, *, flash: bool = False
) -> GenerationSettings:
    """Make settings of a level."""
    return GenerationSettings(
        width=512,
        height=512,
        num_inference_steps=8,
        guidance_scale=2.5,
        acceleration=level,
        flash=flash,
    )


@pytest.mark.parametrize(
    ("transformers", "expected"),
    [
        (BOTH, (EXACT, FAST, FAST)),
        (Transformers(exact=EXACT), (EXACT, EXACT, EXACT)),
        (Transformers(exact=None, fast=FAST), (FAST, FAST, FAST)),
    ],
    ids=["both", "exact alone", "fast alone"],
)
def test_each_level_has_its_transformer_or_the_other(
    transformers: Transformers, expected: tuple[Tree, ...]
) -> None:
    """`none` is exact where that is held; the other levels are fast where that is held."""
    assert tuple(transformers.choose(settings(level)) for level in LEVELS) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_flash_has_its_own(level: Acceleration) -> None:
    """At every level; and nothing else ever gets the one with the LoRA."""
    assert BOTH.choose(settings(level, flash=True)) is FLASH
    assert BOTH.choose(settings(level)) is not FLASH


def test_without_the_lora_flash_is_refused_by_name_or_made_without_it() -> None:
    """The operator decides; who asks is told which file is wanted."""
    problem = "/models/flux/flash/lora.safetensors is missing"
    refusing = Transformers(exact=EXACT, fast=FAST, flash_problem=problem)
    with pytest.raises(FlashUnavailableError, match=problem):
        refusing.choose(settings(flash=True))
    willing = Transformers(exact=EXACT, fast=FAST, flash_fallback=True)
    assert willing.choose(settings(flash=True)) is FAST


def test_only_flash_has_another_schedule() -> None:
    """And only if the operator asks for it."""
    shifted = Transformers(exact=EXACT, flash=FLASH, flash_schedule=FlashSchedule.SHIFT_3)
    assert shifted.shift_for(settings(flash=True)) == 3.0
    assert shifted.shift_for(settings()) is None
    assert BOTH.shift_for(settings(flash=True)) is None


def test_at_least_one_is_needed() -> None:
    """An empty set could make nothing."""
    with pytest.raises(ValueError, match="neither"):
        Transformers(exact=None)
