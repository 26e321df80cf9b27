"""How a model can be laid out, as data, and what a request takes under each plan. No torch.

Which plan fits which card is `pipelines.memory`'s to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pipelines.types import Precision

Placement = Literal["resident", "streamed"]
Flash = Literal["fused", "attached"]

TEXT_TOKENS = 512
"""Every prompt is padded to this, or cut."""

Request = tuple[int, int]
"""Tokens of the picture and of all its references; a token is 16x16 pixels."""

SMALLEST_REQUEST: Request = (4096, 0)
"""1024x1024 from a prompt alone. What cannot make this does not fit."""

USUAL_REQUEST: Request = (4096, 4096)
"""1024x1024 with one reference of 1 MP. `auto` leaves room for this where it can."""

LARGEST_REQUEST: Request = (16384, 4 * 4096)
"""2048x2048 with four references of 1 MP each, the most that most of fal's endpoints take."""

OVERHEAD_BYTES = 500_000_000
"""What the device needs beside tensors once work begins: kernels loaded late, work space of cuBLAS,
rounding of the allocator. An estimate. The CUDA context is there before free memory is read."""

TOKEN_WIDTHS: Mapping[Precision, int] = MappingProxyType(
    {Precision.FLOAT32: 32, Precision.BFLOAT16: 32, Precision.FP8: 36, Precision.INT8: 66}
)
"""What a token takes while a step runs, in rows of the transformer's width in its exact precision.

Live tensors of real blocks, counted on torch's meta device without compilation, are 22 rows in
bfloat16, 31 in fp8 and 57 in int8 (whose products are 32 bits wide), at 4,608 tokens as at 16,896.
InvokeAI saw 1.7 and 6.5 GB reserved at these, which is 32 rows
(https://github.com/invoke-ai/InvokeAI/pull/9519). The 8-bit numbers have a sixth on top."""

PIXEL_WIDTHS = 5
"""What a pixel takes in the VAE, in rows of the decoder's second width in the exact precision.

Counted as above: 3 rows are alive where the picture has its full size and not yet the last width.
The other two are an allowance for cuDNN, which copies to its own layout and takes work space."""

PIXELS_PER_TOKEN = 16 * 16
LARGEST_REFERENCE_TOKENS = 4096  # the VAE sees one at a time, scaled down to 1 MP


@dataclass(frozen=True, slots=True)
class Profile:
    """What is kept where on a card of the size that gives the name.

    `exact` keeps the blocks in the checkpoint's precision beside the fast ones; where there are no
    fast ones they are kept anyway. `flash` is what the eight-step LoRA becomes at best: it is fused
    where this leaves room for the largest request, else attached.
    """

    name: str
    exact: bool
    flash: Flash
    text_encoder: Placement
    blocks: Placement


PROFILES = (
    Profile("141gb", True, "fused", "resident", "resident"),
    Profile("96gb", False, "fused", "resident", "resident"),
    Profile("80gb", False, "attached", "resident", "resident"),
    Profile("48gb", False, "attached", "streamed", "resident"),
    # Streamed blocks take no room on the card, so that 32gb keeps both kinds; 24gb is for boxes
    # whose main memory is not enough for that.
    Profile("32gb", True, "attached", "streamed", "streamed"),
    Profile("24gb", False, "attached", "streamed", "streamed"),
    Profile("cpu", True, "fused", "resident", "resident"),
)
"""The best first: `auto` takes the first that fits."""

PROFILE_NAMES = ("auto", *(profile.name for profile in PROFILES))
"""What an operator may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which trees of the transformer are made, and where everything lies.

    `exact` says whether the blocks are kept in `exact_precision`; `fast` is the precision of the
    others, `flash` how the LoRA is made. `whole_text_encoder` is with all layers, LM head and
    vision, else what prompts need. Streamed text layers are on the card only while a prompt is
    encoded, and its embedding is looked up in main memory; streamed blocks are there only while a
    picture is denoised.
    """

    exact: bool
    exact_precision: Precision
    fast: Precision | None = None
    flash: Flash | None = None
    text_encoder: Placement = "resident"
    blocks: Placement = "resident"
    whole_text_encoder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Layout):
    """A layout, and the bytes that it takes on the card that it was made for."""

    profile: str
    weights_bytes: int
    """What lies on the card all the time."""
    host_bytes: int
    """Pinned main memory behind what is streamed. torch rounds each pinned block up to a power of
    two, half as much again, unless PYTORCH_ALLOC_CONF has `pinned_max_round_threshold_mb:1`."""
    encode_bytes: int
    """What encoding a prompt brings onto the card: the slots of streamed layers."""
    slots_bytes: int
    """What denoising brings there: the slots of streamed blocks."""
    token_bytes: int
    pixel_bytes: int
    free_bytes: int
    """The card's free memory that the plan was made for."""

    def activation_bytes(self, tokens: int) -> int:
        """What a step takes beside weights, for all its tokens: picture, references and text."""
        return self.token_bytes * tokens

    def peak_bytes(self, image_tokens: int, reference_tokens: int = 0, lora_bytes: int = 0) -> int:
        """The most that a request takes on the card, weights and LoRAs of callers and all.

        Encoding, denoising and the VAE follow each other, so the largest of the three counts.
        """
        steps = self.activation_bytes(image_tokens + reference_tokens + TEXT_TOKENS)
        seen = max(image_tokens, min(reference_tokens, LARGEST_REFERENCE_TOKENS))
        vae = self.pixel_bytes * PIXELS_PER_TOKEN * seen
        most = max(self.encode_bytes, self.slots_bytes + steps, vae)
        return self.weights_bytes + lora_bytes + OVERHEAD_BYTES + most

    def fits(self, request: Request, lora_bytes: int = 0) -> bool:
        """Whether a request of so many tokens of picture and references fits on the card."""
        return self.peak_bytes(*request, lora_bytes) <= self.free_bytes

    @property
    def largest_tokens(self) -> int:
        """The tokens of the largest picture without references that fits; 0 if none does."""
        room = self.free_bytes - self.weights_bytes - OVERHEAD_BYTES
        if room < self.encode_bytes:
            return 0
        by_steps = (room - self.slots_bytes) // self.token_bytes - TEXT_TOKENS
        return max(0, min(by_steps, room // (self.pixel_bytes * PIXELS_PER_TOKEN)))
