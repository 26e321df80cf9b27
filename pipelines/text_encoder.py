"""Loads as much of the text encoder as a layout has, to where the layout wants it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.plan import Layout
from pipelines.recipes import Recipe
from pipelines.streaming import HostEmbedding, Slots, stream, to_host
from pipelines.variants import derive


def load_text_encoder(
    model: Path,
    device: torch.device,
    dtype: torch.dtype,
    layout: Layout,
    slots: Slots,
    recipe: Recipe,
) -> Any:
    """Load the text encoder of a model folder.

    Unless the layout wants it whole there is nothing behind what prompts need, neither layers nor
    LM head nor vision: 13 GB of the real [dev]. What the layout streams passes through the slots.
    """
    folder = str(model / "text_encoder")
    config = recipe.encoder.config_class.from_pretrained(folder, local_files_only=True)
    if not layout.whole_text_encoder:
        _shorten(config.get_text_config(), recipe.read_layers[-1])
    is_streamed = layout.text_encoder == "streamed"
    encoder = recipe.encoder.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        # Straight to the card: not all of it may fit into main memory.
        **({} if is_streamed or device.type == "cpu" else {"device_map": str(device)}),
    ).eval()
    if not layout.whole_text_encoder:
        for name in recipe.unread:
            encoder.set_submodule(name, nn.Identity())
    return _stream(encoder, device, slots, recipe.language) if is_streamed else encoder


def _shorten(language: Any, layers: int) -> None:
    """Leave no more than so many layers in a language model's configuration."""
    language.num_hidden_layers = min(layers, language.num_hidden_layers)
    kinds = getattr(language, "layer_types", None)
    if kinds is not None:
        language.layer_types = kinds[: language.num_hidden_layers]


@torch.no_grad()
def _stream(encoder: Any, device: torch.device, slots: Slots, prefix: str) -> Any:
    """Leave layers and embedding in main memory, and move the rest to the device."""
    language = encoder.get_submodule(prefix)
    for parameter in language.layers.parameters():
        parameter.data = to_host(parameter)
    hosted = {*map(id, language.layers.parameters()), id(language.embed_tokens.weight)}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if id(tensor) not in hosted:
            tensor.data = tensor.to(device)
    layers = [f"{prefix}.layers.{number}" for number in range(len(language.layers))]
    encoder = stream(encoder, layers, slots)
    return derive(encoder, {f"{prefix}.embed_tokens": partial(HostEmbedding, device)})
