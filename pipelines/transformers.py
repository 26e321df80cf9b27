"""The transformers that one pipeline holds, and which of them makes a request."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.adapters import Adapted
from pipelines.denoiser import Denoiser
from pipelines.errors import FlashUnavailableError
from pipelines.lora_shelf import LoraShelf
from pipelines.types import Acceleration, FlashSchedule, GenerationSettings, Precision

HASH_CHARACTERS = 12
"""Of the hash of a caller's LoRA, in what is told of an image: enough to know a file by."""

TURBO_SHIFT = 3.0
"""What the Turbo LoRA's schedule was shifted by in training, whatever the size of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One transformer and how it computes, in words for logs and answers.

    `adapted` is the same with callers' LoRAs, of which `loras` tells those that are put on.
    """

    denoiser: Denoiser
    precision: Precision
    attention: str = "native"
    compiled: bool = False
    lora: str = "none"
    loras: str = ""
    adapted: Adapted | None = None

    @property
    def description(self) -> Mapping[str, str]:
        """What is true of every image that this transformer makes."""
        return {
            **({"loras": self.loras} if self.loras else {}),
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
    without it. `loras` are those of callers, for the exact and the fast tree.
    """

    exact: Tree | None
    fast: Tree | None = None
    flash: Tree | None = None
    flash_problem: str = "no flash LoRA was loaded"
    flash_fallback: bool = False
    flash_schedule: FlashSchedule = FlashSchedule.CARD
    loras: LoraShelf | None = None

    def __post_init__(self) -> None:
        """Refuse to be empty."""
        if not (self.exact or self.fast):
            raise ValueError("neither an exact nor a fast transformer")

    def choose(self, settings: GenerationSettings) -> Tree:
        """Return the tree that makes this request, with its LoRAs, and no others, put on.

        Raises `FlashUnavailableError` for a flash request where there is no LoRA,
        `LoraRefusedError` for a LoRA of the caller's that does not fit.
        """
        tree = self._choose_base(settings)
        return self._put_on(tree, settings) if settings.loras else tree

    def _choose_base(self, settings: GenerationSettings) -> Tree:
        if settings.flash and self.flash:
            return self.flash
        if settings.flash and not self.flash_fallback:
            raise FlashUnavailableError(self.flash_problem)
        by_preference = [self.fast, self.exact]
        if settings.acceleration is Acceleration.NONE:
            by_preference.reverse()
        return next(tree for tree in by_preference if tree)

    def _put_on(self, tree: Tree, settings: GenerationSettings) -> Tree:
        if self.loras is None or tree.adapted is None:
            raise ValueError("this transformer takes no LoRAs of callers")
        loras = self.loras.fetch(settings.loras)
        uses = [(lora, use.scale) for lora, use in zip(loras, settings.loras, strict=True)]
        words = "+".join(f"{lora.sha256[:HASH_CHARACTERS]}*{scale:g}" for lora, scale in uses)
        uses = [(lora, scale) for lora, scale in uses if scale]
        for other in self.all:
            if other.adapted:
                other.adapted.put_on(uses if other is tree else ())
        denoiser = tree.adapted.denoiser if uses else tree.denoiser
        return replace(tree, denoiser=denoiser, loras=words)

    @property
    def lora_bytes(self) -> int:
        """What callers' LoRAs take on the device now."""
        return self.loras.held_bytes if self.loras else 0

    def keep_only(self, settings: GenerationSettings | None = None) -> None:
        """Give back the memory of all callers' LoRAs but those of this request."""
        if self.loras:
            loras = self.loras.fetch(settings.loras) if settings else ()
            self._take_off()
            self.loras.keep_only(loras)

    def let_go(self) -> None:
        """Put no LoRA on any longer, and keep what may be kept of them until another request."""
        if self.loras:
            self._take_off()
            self.loras.trim()

    def _take_off(self) -> None:
        for tree in self.all:
            if tree.adapted:
                tree.adapted.put_on(())

    @property
    def with_adapted(self) -> tuple[Tree, ...]:
        """Every tree that there is, and those for LoRAs as trees of their own."""
        adapted = (
            replace(tree, denoiser=tree.adapted.denoiser) for tree in self.all if tree.adapted
        )
        return *self.all, *adapted

    @property
    def all(self) -> tuple[Tree, ...]:
        """Every tree that there is."""
        return tuple(tree for tree in (self.exact, self.fast, self.flash) if tree)

    def shift_for(self, settings: GenerationSettings) -> float | None:
        """Return the shift of the request's schedule, or None for the resolution's own."""
        is_shifted = settings.flash and self.flash_schedule is FlashSchedule.SHIFT_3
        return TURBO_SHIFT if is_shifted else None
