"""What steers the denoising: prompts and reference images, encoded once and remembered.

Both encoders give bit for bit what `Flux2Pipeline` gives; they only leave out what it throws away.

Shapes: K = 512 text tokens, W the text encoder's width, R reference tokens, C = 128.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from PIL import Image
from torch import nn

from pipelines.cache import TensorCache
from pipelines.model_size import PROMPT_LAYERS
from pipelines.plan import TEXT_TOKENS
from pipelines.types import REFERENCE_AREA_PIXELS, size_of_reference
from pipelines.variants import derive

READ_LAYERS = (10, 20, PROMPT_LAYERS)
"""After which layers of the text encoder its hidden states are read."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What steers the denoising, the same for all images of a request."""

    prompt_embeds: torch.Tensor  # (1, K, 3 * W)
    text_ids: torch.Tensor  # (1, K, 4): positions on the axes T, H, W, L
    reference_tokens: torch.Tensor | None  # (1, R, C)
    reference_ids: torch.Tensor | None  # (1, R, 4)


class TextEncoder:
    """Reads prompts with as much of the text encoder as FLUX.2 needs."""

    def __init__(self, pipe: Flux2Pipeline, device: torch.device, cache: TensorCache) -> None:
        self._pipe = pipe
        self._device = device
        self._cache = cache
        language = pipe.text_encoder.model.language_model
        # The layers behind the last one that is read, the norm behind them and the LM head over
        # all positions would be computed for nothing.
        self._language = derive(
            language,
            {
                "layers": lambda layers: nn.ModuleList(layers[: READ_LAYERS[-1]]),
                "norm": lambda _norm: nn.Identity(),
                **{f"layers.{number - 1}": Tap for number in READ_LAYERS},
            },
        )

    @torch.no_grad()
    def encode(self, prompt: str) -> torch.Tensor:
        """Return the prompt's embedding (1, K, 3 * W), as `Flux2Pipeline.encode_prompt` does."""
        return self._cache.get((self._pipe.system_message, prompt), lambda: self._encode(prompt))

    def _encode(self, prompt: str) -> torch.Tensor:
        tokens = self._pipe.tokenizer.apply_chat_template(
            format_input(prompts=[prompt], system_message=self._pipe.system_message),
            add_generation_prompt=False,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=TEXT_TOKENS,
        )
        self._language(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
            use_cache=False,
        )
        taps = (self._language.layers[number - 1] for number in READ_LAYERS)
        return torch.cat([tap.take() for tap in taps], dim=-1)


class Tap(nn.Module):
    """Runs a layer and keeps what it gave, which nothing else that runs the layer sees."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._given: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the layer does."""
        output = self.layer(*args, **kwargs)
        self._given = output[0] if isinstance(output, tuple) else output
        return output

    def take(self) -> torch.Tensor:
        """Return what the layer gave last, once. Raises `RuntimeError` if it has not run."""
        given, self._given = self._given, None
        if given is None:
            raise RuntimeError("the layer has not run")
        return given


class ReferenceEncoder:
    """Turns reference images into tokens of their latents."""

    def __init__(self, pipe: Flux2Pipeline, device: torch.device, cache: TensorCache) -> None:
        self._pipe = pipe
        self._device = device
        self._cache = cache

    @torch.no_grad()
    def encode(self, paths: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (1, R, C) and positions (1, R, 4) of all pictures, in their order.

        Raises `ValueError` for a picture outside the model's limits.
        """
        grids = [self._encode(path) for path in paths]
        ids = self._pipe._prepare_image_ids(grids)  # noqa: SLF001
        packed = [self._pipe._pack_latents(grid) for grid in grids]  # noqa: SLF001
        return torch.cat(packed, dim=1), ids.to(self._device)

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return tokens (1, S, C) of a picture (1, 3, H, W) in [-1, 1]; nothing is remembered."""
        packed: torch.Tensor = self._pipe._pack_latents(self._encode_pixels(pixels))  # noqa: SLF001
        return packed

    def _encode(self, path: Path) -> torch.Tensor:
        """Return a picture's latents, normalised, as a grid (1, C, height/16, width/16)."""
        data = path.read_bytes()
        key = hashlib.sha256(data).digest()
        return self._cache.get(key, lambda: self._encode_pixels(self._load(data)))

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self._pipe.vae
        # The encoder's mode is taken: nothing is drawn, and a picture's latents are always equal.
        latents: torch.Tensor = self._pipe._encode_vae_image(  # noqa: SLF001
            pixels.to(self._device, vae.dtype), generator=None
        )
        return latents

    def _load(self, data: bytes) -> torch.Tensor:
        """Read one picture as (1, 3, height, width) in [-1, 1], sides multiples of 16."""
        processor = self._pipe.image_processor
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        processor.check_image_input(picture)
        picture = processor._resize_if_exceeds_area(picture, REFERENCE_AREA_PIXELS)  # noqa: SLF001
        width, height = size_of_reference(*picture.size)
        pixels: torch.Tensor = processor.preprocess(
            picture, height=height, width=width, resize_mode="crop"
        )
        return pixels
