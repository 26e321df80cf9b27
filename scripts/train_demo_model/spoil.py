"""Spoils drawn pictures a little, as a small diffusion model and a file format do.

What looks at generated pictures must not learn that edges are sharp, that grounds are smooth and
that straight lines are straight.
"""

import io
import random

import torch
from PIL import Image, ImageFilter

_WARP_POINTS = 10  # per side; between them the displacement is interpolated
_WARP = 0.03  # standard deviation of the displacement, in halves of the picture's side
_NOISE_GRAINS = (1, 2, 8)  # sizes of the noise's grain, in pixels
_RESAMPLING = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)


def spoil_picture(picture: Image.Image, random: random.Random) -> Image.Image:
    """Blur and compress an RGB picture, each more often than not; its size stays."""
    if random.random() < 0.6:
        radius = random.uniform(0.2, 0.012 * min(picture.size))
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if random.random() < 0.6:
        compressed = io.BytesIO()
        picture.save(compressed, "JPEG", quality=random.randint(25, 95))
        picture = Image.open(compressed).convert("RGB")
    return picture


def draw_noise(width: int, height: int, random: random.Random) -> Image.Image:
    """Draw an RGB picture of nothing: noise of any grain, as of a generation that failed."""
    across, along = (random.randint(2, side) for side in (width, height))
    noise = Image.frombytes("RGB", (across, along), random.randbytes(3 * across * along))
    return noise.resize((width, height), random.choice(_RESAMPLING))


def spoil_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Warp, shift in colour, and add noise to (B, 3, height, width) in [-1, 1].

    Draws from torch's global random state. A quarter of the pictures stays as it is.
    """
    count, device = pixels.shape[0], pixels.device
    spoilt = _shift_colours(_warp(pixels))
    grain = _NOISE_GRAINS[int(torch.randint(len(_NOISE_GRAINS), ()))]
    sizes = [-(-side // grain) for side in pixels.shape[2:]]
    noise = 0.1 * torch.rand(count, 1, 1, 1, device=device)
    noise = noise * torch.randn(count, 3, *sizes, device=device)
    spoilt = spoilt + torch.nn.functional.interpolate(noise, pixels.shape[2:])
    stays = torch.rand(count, 1, 1, 1, device=device) < 0.25
    return torch.where(stays, pixels, spoilt.clamp(-1, 1))


def _warp(pixels: torch.Tensor) -> torch.Tensor:
    """Move every point a little, its neighbours by nearly as much."""
    count, device = pixels.shape[0], pixels.device
    strength = _WARP * torch.rand(count, 1, 1, 1, device=device)
    coarse = strength * torch.randn(count, 2, _WARP_POINTS, _WARP_POINTS, device=device)
    moved = torch.nn.functional.interpolate(
        coarse, pixels.shape[2:], mode="bilinear", align_corners=True
    )
    unmoved = torch.eye(2, 3, device=device).expand(count, 2, 3)
    grid = torch.nn.functional.affine_grid(unmoved, list(pixels.shape), align_corners=False)
    return torch.nn.functional.grid_sample(
        pixels,
        grid + moved.permute(0, 2, 3, 1).contiguous(),
        padding_mode="border",
        align_corners=False,
    )


def _shift_colours(pixels: torch.Tensor) -> torch.Tensor:
    """Change contrast and tint, by channel."""
    count, device = pixels.shape[0], pixels.device
    gains = 1 - 0.25 * torch.rand(count, 3, 1, 1, device=device)
    return pixels * gains + 0.1 * torch.randn(count, 3, 1, 1, device=device)
