"""The transformers that one pipeline holds, and which of them makes a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.denoiser import Denoiser
from pipelines.errors import FlashUnavailableError
from pipelines.types import Acceleration, FlashSchedule, GenerationSettings, Precision

TURBO_SHIFT = 3.0
"""What the Turbo LoRA's schedule was shifted by in training, whatever the size of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One transformer and how it computes, in words for logs and answers."""

    denoiser: Denoiser
    precision: Precision
    attention: str = "native"
    compiled: bool = False
    lora: str = "none"

    @property
    def description(self) -> Mapping[str, str]:
        """What is true of every image that this transformer makes."""
        return {
            "precision": self.precision.value,
            "attention": self.attention,
            "compile": "on" if self.compiled else "off",
            "lora": self.lora,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformers:
    """A tree for each kind of request. They share the weights in which they do not differ.

    `exact` computes in the checkpoint's precision, `fast` has quantised blocks; one of the two may
    be missing, and the other does its work then. `flash` has the eight-step LoRA in it;
    `flash_problem` says why there is none. With `flash_fallback` the few steps are then made
    without it.
    """

    exact: Tree | None
    fast: Tree | None = None
    flash: Tree | None = None
    flash_problem: str = "no flash LoRA was loaded"
    flash_fallback: bool = False
    flash_schedule: FlashSchedule = FlashSchedule.CARD

    def __post_init__(self) -> None:
        """Refuse to be empty."""
        if not (self.exact or self.fast):
            raise ValueError("neither an exact nor a fast transformer")

    def choose(self, settings: GenerationSettings) -> Tree:
        """Return the tree that makes this request.

        Raises `FlashUnavailableError` for a flash request where there is no LoRA.
        """
        if settings.flash and self.flash:
            return self.flash
        if settings.flash and not self.flash_fallback:
            raise FlashUnavailableError(self.flash_problem)
        by_preference = [self.fast, self.exact]
        if settings.acceleration is Acceleration.NONE:
            by_preference.reverse()
        return next(tree for tree in by_preference if tree)

    @property
    def all(self) -> tuple[Tree, ...]:
        """Every tree that there is."""
        return tuple(tree for tree in (self.exact, self.fast, self.flash) if tree)

    def shift_for(self, settings: GenerationSettings) -> float | None:
        """Return the shift of the request's schedule, or None for the resolution's own."""
        is_shifted = settings.flash and self.flash_schedule is FlashSchedule.SHIFT_3
        return TURBO_SHIFT if is_shifted else None
