"""What the model's parts take, what of them fits on a card, and how that is best laid out.

Arithmetic alone: nothing is loaded, no torch is imported, and equal arguments give equal plans.

Where little fits, layers are streamed: they stay in pinned main memory and pass through two slots
on the card. There is no 4-bit precision (nf4) beside fp8 and int8: streamed fp8 blocks cost 31 GB
over PCIe a step, which largely hides behind the arithmetic on cards that need it, keep the quality
of fp8, and want no further dependency.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from pipelines.errors import DoesNotFitError
from pipelines.model_size import ModelSize
from pipelines.plan import (
    LARGEST_REQUEST,
    PIXEL_WIDTHS,
    PIXELS_PER_TOKEN,
    PROFILE_NAMES,
    PROFILES,
    SMALLEST_REQUEST,
    TOKEN_WIDTHS,
    USUAL_REQUEST,
    Flash,
    Plan,
    Profile,
)
from pipelines.types import Precision

FAST_FROM: Mapping[Precision, tuple[int, int]] = MappingProxyType(
    {Precision.FP8: (8, 9), Precision.INT8: (8, 0)}
)
"""The CUDA capability from which 8 bits are multiplied faster than 16, on Ada and on Ampere; the
better kind first. https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html"""

HOST_RESERVE_BYTES = 8_000_000_000
"""Main memory that streaming leaves alone: the gateway, the decoder, the cache of prompts."""

_BYTES = {Precision.FLOAT32: 4, Precision.BFLOAT16: 2, Precision.FP8: 1, Precision.INT8: 1}
_LORA_UNIT = 2  # bytes of a number in the LoRA's file
_SLOTS = 2  # one layer computes while the next one comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The device that runs the model, as it is before anything is loaded.

    `capability` is that of CUDA. On a CPU `total_bytes` and `free_bytes` are main memory, which
    `host_free_bytes` is everywhere.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    capability: tuple[int, int] | None
    total_bytes: int
    free_bytes: int
    host_free_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a profile fits, and why: for the smallest request, on the card and beside it.

    A profile for another kind of device has no plan and needs nothing.
    """

    profile: str
    fits: bool
    why: str
    plan: Plan | None
    needed_bytes: int
    free_bytes: int
    host_needed_bytes: int
    host_free_bytes: int


def choose_plan(
    card: Card,
    size: ModelSize,
    profile: str = "auto",
    *,
    has_flash: bool = True,
    whole_text_encoder: bool = False,
    exact_precision: Precision | None = None,
) -> Plan:
    """Lay the model out on the card, by a profile or by the best that fits.

    `auto` takes the first profile with room for `USUAL_REQUEST`, else the first with room for
    `SMALLEST_REQUEST`; a named one is taken if it has the latter. The exact precision is by default
    bfloat16 on a card and float32 on a CPU. Raises `DoesNotFitError`, which says what is missing,
    and `ValueError` for a profile that there is not.
    """
    if profile not in PROFILE_NAMES:
        raise ValueError(f"no profile {profile!r}, only {', '.join(PROFILE_NAMES)}")
    verdicts = explain(
        card,
        size,
        has_flash=has_flash,
        whole_text_encoder=whole_text_encoder,
        exact_precision=exact_precision,
    )
    if profile != "auto":
        return _plan_of(next(verdict for verdict in verdicts if verdict.profile == profile), card)
    possible = [verdict for verdict in verdicts if verdict.plan]
    fitting = [verdict.plan for verdict in possible if verdict.plan and verdict.fits]
    if not fitting:
        return _plan_of(possible[-1], card)
    best = next((plan for plan in fitting if plan.fits(USUAL_REQUEST)), fitting[0])
    # Two profiles may come to the same: then it is called after the smaller card.
    return next(plan for plan in reversed(fitting) if replace(plan, profile=best.profile) == best)


def explain(
    card: Card,
    size: ModelSize,
    *,
    has_flash: bool = True,
    whole_text_encoder: bool = False,
    exact_precision: Precision | None = None,
) -> list[Verdict]:
    """Judge every profile, the best first. The arguments are those of `choose_plan`."""
    exact = exact_precision or (Precision.FLOAT32 if card.kind == "cpu" else Precision.BFLOAT16)
    layout = _Layout(card, size, exact, whole_text_encoder)
    return [_judge(card, profile, layout.plan(profile, has_flash)) for profile in PROFILES]


def _plan_of(verdict: Verdict, card: Card) -> Plan:
    if verdict.plan and verdict.fits:
        return verdict.plan
    raise DoesNotFitError(f"profile {verdict.profile} on {card.name}: {verdict.why}")


def _judge(card: Card, profile: Profile, plan: Plan | None) -> Verdict:
    if plan is None:
        why = f"made for another kind of device than {card.kind}"
        return Verdict(profile.name, False, why, None, 0, card.free_bytes, 0, card.host_free_bytes)
    needed_bytes = plan.peak_bytes(*SMALLEST_REQUEST)
    host_bytes = plan.host_bytes + HOST_RESERVE_BYTES if plan.host_bytes else 0
    missing = [
        f"a picture of 1024x1024 needs {needed / 1e9:.1f} GB {where}, {free / 1e9:.1f} GB are "
        f"free, {(needed - free) / 1e9:.1f} GB are missing"
        for where, needed, free in (
            ("on the device", needed_bytes, card.free_bytes),
            ("of main memory", host_bytes, card.host_free_bytes),
        )
        if needed > free
    ]
    return Verdict(
        profile=profile.name,
        fits=not missing,
        why="; ".join(missing) or _describe_room(plan),
        plan=plan,
        needed_bytes=needed_bytes,
        free_bytes=card.free_bytes,
        host_needed_bytes=host_bytes,
        host_free_bytes=card.host_free_bytes,
    )


def _describe_room(plan: Plan) -> str:
    megapixels = plan.largest_tokens * PIXELS_PER_TOKEN / 1e6
    text = f"{plan.weights_bytes / 1e9:.1f} of {plan.free_bytes / 1e9:.1f} GB are for weights"
    if plan.host_bytes:
        text += f", {plan.host_bytes / 1e9:.1f} GB are streamed from main memory"
    return f"{text}; there is room for pictures of {megapixels:.1f} megapixels"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Puts a model onto a card, one profile at a time."""

    card: Card
    size: ModelSize
    exact: Precision
    whole_text_encoder: bool

    def plan(self, profile: Profile, has_flash: bool) -> Plan | None:
        """Return the profile's plan, or None if it is for another kind of device."""
        if (profile.name == "cpu") != (self.card.kind == "cpu"):
            return None
        if not (has_flash and self.size.lora_bytes):
            return self._plan(profile, None)
        fused = self._plan(profile, "fused")
        if profile.flash == "fused" and fused.fits(LARGEST_REQUEST):
            return fused
        return self._plan(profile, "attached")

    def _plan(self, profile: Profile, flash: Flash | None) -> Plan:
        size, unit = self.size, _BYTES[self.exact]
        fast = fastest_of(self.card.capability)
        exact = profile.exact or not fast
        precisions = [self.exact] * exact + ([fast] if fast else [])
        streams_text = profile.text_encoder == "streamed"
        streams_blocks = profile.blocks == "streamed"
        layers = size.text_layers_of(whole=self.whole_text_encoder) * unit
        around = size.text_around_of(whole=self.whole_text_encoder) * unit
        if streams_text:
            hosted, kept = layers + size.text_embedding * unit, around - size.text_embedding * unit
        else:
            hosted, kept = 0, layers + around
        blocks = sum(size.blocks_bytes(_BYTES[precision]) for precision in precisions)
        resident = (size.transformer_others + size.vae) * unit
        resident += self._flash_bytes(flash, precisions[-1])
        slot = size.largest_block * max(_BYTES[precision] for precision in precisions)
        slots_bytes = _SLOTS * slot if streams_blocks else 0
        # Text layers and blocks take turns in the same slots.
        encode_bytes = max(slots_bytes, _SLOTS * size.text_layer * unit) if streams_text else 0
        rows = max(TOKEN_WIDTHS[precision] for precision in precisions)
        return Plan(
            profile=profile.name,
            exact=exact,
            exact_precision=self.exact,
            fast=fast,
            flash=flash,
            text_encoder=profile.text_encoder,
            blocks=profile.blocks,
            whole_text_encoder=self.whole_text_encoder,
            weights_bytes=resident + kept + (0 if streams_blocks else blocks),
            host_bytes=hosted + (blocks if streams_blocks else 0),
            encode_bytes=encode_bytes,
            slots_bytes=slots_bytes,
            token_bytes=rows * size.width * unit,
            pixel_bytes=PIXEL_WIDTHS * size.vae_width * unit,
            free_bytes=self.card.free_bytes,
        )

    def _flash_bytes(self, flash: Flash | None, precision: Precision) -> int:
        """Return what the eight-step LoRA takes; it is fused in the `precision` of its blocks."""
        unit = _BYTES[self.exact]
        if flash is None:
            return 0
        if flash == "fused":
            return self.size.fused_bytes(_BYTES[precision], unit)
        return self.size.lora_bytes * unit // _LORA_UNIT


def fastest_of(capability: tuple[int, int] | None) -> Precision | None:
    """Choose what blocks are quantised to on a CUDA device of this capability.

    None where 8 bits are no faster: on older cards, and on a CPU, which has no capability.
    """
    fast = (name for name, least in FAST_FROM.items() if capability and capability >= least)
    return next(fast, None)
