"""Trains the VAE: pictures of the world to latents and back.

The latents are disturbed on their way to the decoder, so that it forgives what the transformer gets
slightly wrong. And they are held near a linear map of the picture's colours: what is easy to say of
a place must be easy to draw there. Left to itself the encoder lets a plain colour depend on the
whole picture, through its norms, and the transformer would spend most of its training on that.
"""

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from scripts.train_demo_model.examples import realise
from scripts.train_demo_model.loop import Loop, autocast
from scripts.train_demo_model.meaning import sample_drawing
from scripts.train_demo_model.world import draw

_NOISE = 0.4  # standard deviation of the disturbance; the latents' own is about 1
_PLAIN = 2.0  # weight of the latents' distance from the linear map in the loss
_AVERAGED = 4  # side in pixels of the squares whose mean colours the latents hold
_STEADY = 3.0  # what holds the encoder's last norm steady, beside signals of about 1
_STATISTICS_PICTURES = 64
_QUIET_CHANNEL = 0.02  # a channel's variance counts as at least this share of the mean one


def build_vae() -> Any:
    """Make an untrained VAE: the real one's class, compression and channels, small widths.

    No attention in the middle: it would see 64 positions in training and thousands in use.
    """
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(16, 32, 32, 64),
        decoder_block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    _let_colours_through(vae)
    _steady_last_norm(vae.encoder)
    return vae


def plain_latents(pixels: torch.Tensor) -> torch.Tensor:
    """Map pictures (B, 3, H, W) linearly to latents (B, 32, H/8, W/8).

    A latent holds the mean colours of the four squares in its eight by eight pixels, spread over
    all channels alike.
    """
    squares = pixel_unshuffle(avg_pool2d(pixels, _AVERAGED), 8 // _AVERAGED)
    source = torch.Generator().manual_seed(0)
    spread, _ = torch.linalg.qr(torch.randn(32, squares.shape[1], generator=source))
    spread = spread * (spread.shape[0] / spread.shape[1]) ** 0.5
    return torch.einsum("ls,bshw->blhw", spread.to(squares), squares)


@torch.no_grad()
def _let_colours_through(vae: Any) -> None:
    """Begin with convolutions that hand a plain colour on from scale to scale.

    torch's default shrinks it by three at each, and then the norms see only biases: the first
    hundreds of steps go by before the picture is more than grey.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d) or "conv1" in name or "conv2" in name:
            continue
        if "samplers" not in name:
            module.weight.mul_(3**0.5)
            continue
        channels = range(module.weight.shape[0])
        module.weight.mul_(0.5)
        if "down" in name:
            module.weight[channels, channels] += 1 / 9
        else:
            module.weight[channels, channels, 1, 1] += 1


@torch.no_grad()
def _steady_last_norm(encoder: Any) -> None:
    """Let large constants decide what the last norm divides by, instead of the whole picture."""
    bias = encoder.mid_block.resnets[-1].conv2.bias
    bias += _STEADY * (1 - 2 * (torch.arange(len(bias)) % 2))
    encoder.conv_out.weight.mul_(_STEADY)


def train_vae(folder: Path, device: torch.device, *, steps: int, seed: int = 0) -> Any:
    """Train, and return the VAE with the latents' statistics in its `bn`."""
    torch.manual_seed(seed)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    loop = Loop(folder, vae, steps=steps, peak_rate=3e-3, average=0.99, seed=seed)
    cast = autocast(device)
    for step in loop:
        pixels = _sample_pixels(random.Random(loop.seed_of(step)), whole=step % 4 == 0).to(device)
        with cast():
            latents = vae.encode(pixels).latent_dist.mode()
            drawn = vae.decode(_disturb(latents, _NOISE)).sample
        error = drawn.float() - pixels
        loss = error.abs().mean() + error.square().mean()
        loss = loss + _PLAIN * (latents.float() - plain_latents(pixels)).square().mean()
        bent = float((latents.detach().float() - plain_latents(pixels)).square().mean())
        loop.update(loss, mae=float(error.detach().abs().mean()), bent=bent)
    trained = loop.averaged()
    _measure_latents(trained, device, seed)
    return trained


def refine_decoder(
    folder: Path, vae: Any, device: torch.device, *, steps: int, seed: int = 0
) -> Any:
    """Train the decoder further, in place, for cleaner pictures; returns averaged weights.

    The latents stay what they are, so a transformer that was trained on them need not know.
    """
    vae.to(device, memory_format=torch.channels_last)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    loop = Loop(folder, vae, steps=steps, peak_rate=1.5e-3, average=0.99, seed=seed)
    cast = autocast(device)
    for step in loop:
        source = random.Random(loop.seed_of(step))
        pixels = _sample_pixels(source, whole=step % 4 == 0).to(device)
        with cast():
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mode()
            drawn = vae.decode(_disturb(latents, source.uniform(0.0, _NOISE))).sample
        error = drawn.float() - pixels
        mae = error.abs().mean()
        loop.update(mae + error.square().mean(), mae=float(mae.detach()))
    return loop.averaged()


def _disturb(latents: torch.Tensor, deviation: float) -> torch.Tensor:
    return latents + deviation * torch.randn_like(latents)


def to_pixels(pictures: list[Any]) -> torch.Tensor:
    """Stack RGB pictures of one size as (B, 3, height, width) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    pixels = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def _sample_pixels(random: random.Random, *, whole: bool) -> torch.Tensor:
    """Draw 16 cut-outs of 64 pixels, or a few whole pictures: norms see the whole of one."""
    if whole:
        side = random.choice((128, 192, 256))
        count = 6 if side == 128 else 2
        return to_pixels([draw(_sample_scene(random), side, side) for _ in range(count)])
    pictures = []
    for _ in range(16):
        side = random.choice((96, 128, 256, 384, 512, 768))
        picture = draw(_sample_scene(random), side, side)
        left, top = (random.randrange(side - 63) for _ in range(2))
        pictures.append(picture.crop((left, top, left + 64, top + 64)))
    return to_pixels(pictures)


def _sample_scene(random: random.Random) -> Any:
    return realise(sample_drawing(random), 1.0, random).target


@torch.no_grad()
def _measure_latents(vae: Any, device: torch.device, seed: int) -> None:
    """Set mean and variance of the 128 patch channels, by which the pipeline normalises.

    A channel that hardly moves is left small instead of being blown up to the others' size: what
    it holds decides nothing, and the transformer need not learn it.
    """
    source = random.Random(seed + 1)
    rows = []
    for _ in range(_STATISTICS_PICTURES // 4):
        pixels = to_pixels([draw(_sample_scene(source), 256, 256) for _ in range(4)]).to(device)
        latents = vae.encode(pixels).latent_dist.mode().float()
        patches = pixel_unshuffle(latents, 2)
        rows.append(patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1]))
    values = torch.cat(rows)
    variance = values.var(dim=0)
    vae.bn.running_mean.copy_(values.mean(dim=0))
    vae.bn.running_var.copy_(variance.clamp_min(_QUIET_CHANNEL * variance.mean()))
