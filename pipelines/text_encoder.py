"""Loads as much of the text encoder as a layout has, to where the layout wants it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from pipelines.model_size import PROMPT_LAYERS
from pipelines.plan import Layout
from pipelines.streaming import HostEmbedding, Slots, stream, to_host
from pipelines.variants import derive


def load_text_encoder(
    model: Path, device: torch.device, dtype: torch.dtype, layout: Layout, slots: Slots
) -> Any:
    """Load `Mistral3ForConditionalGeneration` from a model folder.

    Unless the layout wants it whole there are no layers, no LM head and no vision behind what
    prompts need: 13 GB of the real one. What the layout streams passes through the slots.
    """
    folder = str(model / "text_encoder")
    config = transformers.Mistral3Config.from_pretrained(folder, local_files_only=True)
    if not layout.whole_text_encoder:
        language = config.text_config
        language.num_hidden_layers = min(PROMPT_LAYERS, language.num_hidden_layers)
    is_streamed = layout.text_encoder == "streamed"
    encoder = transformers.Mistral3ForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        # Straight to the card: not all of it may fit into main memory.
        **({} if is_streamed or device.type == "cpu" else {"device_map": str(device)}),
    ).eval()
    if not layout.whole_text_encoder:
        encoder.lm_head = nn.Identity()
        encoder.model.vision_tower = nn.Identity()
        encoder.model.multi_modal_projector = nn.Identity()
    return _stream(encoder, device, slots) if is_streamed else encoder


@torch.no_grad()
def _stream(encoder: Any, device: torch.device, slots: Slots) -> Any:
    """Leave layers and embedding in main memory, and move the rest to the device."""
    language = encoder.model.language_model
    for parameter in language.layers.parameters():
        parameter.data = to_host(parameter)
    hosted = {*map(id, language.layers.parameters()), id(language.embed_tokens.weight)}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if id(tensor) not in hosted:
            tensor.data = tensor.to(device)
    prefix = "model.language_model"
    layers = [f"{prefix}.layers.{number}" for number in range(len(language.layers))]
    encoder = stream(encoder, layers, slots)
    return derive(encoder, {f"{prefix}.embed_tokens": partial(HostEmbedding, device)})
