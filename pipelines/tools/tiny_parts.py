"""The parts with random weights that every tiny FLUX.2 has: transformer, VAE, and the drawing."""

import math
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

TEXT_WIDTH = 32
"""Of the text encoder's tokens; the transformer reads three layers of it."""


def build_transformer(random: torch.Generator, *, guidance_embeds: bool) -> Any:
    """Draw a transformer; [dev]'s embeds how strong its guidance is, klein's does not."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=guidance_embeds,
    )
    # Sharp attention, loud text, quiet latents: else 500 tokens that every prompt has in common
    # drown the dozen that differ.
    gains = {"attn.norm_": 2.5, "modulation": 2.0, "add_v_proj": 3.0, "x_embedder": 0.3}
    randomise(transformer, random, gains | {"guidance_embedder": 0.3})
    return transformer


def build_vae(random: torch.Generator) -> Any:
    """Draw a VAE, with the statistics of its latents."""
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), latent_channels=32, layers_per_block=1, norm_num_groups=4
    )
    randomise(vae, random, {"decoder.conv_out": 0.7})  # few pixels beyond black and white
    vae.bn.running_mean.normal_(0.0, 0.2, generator=random)
    vae.bn.running_var.uniform_(0.5, 2.0, generator=random)
    return vae


@torch.no_grad()
def randomise(model: torch.nn.Module, random: torch.Generator, gains: Mapping[str, float]) -> None:
    """Draw weights that keep signals at about their size, times the gain of their name's part."""
    for name, parameter in sorted(model.named_parameters()):
        gain = math.prod(value for part, value in gains.items() if part in name)
        if parameter.ndim > 1:
            parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5, generator=random)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1, generator=random)
        else:
            parameter.fill_(gain)  # the scale of a norm
