"""Pictures of what is still being drawn, for callers who watch: small, and made without the VAE.

One token of FLUX.2 covers 16x16 pixels; a linear map of its 128 channels turns it into 2x2 colours,
so that a preview is an eighth of the image in each direction. The map is fitted to the VAE itself,
once, by least squares over pictures that the VAE encodes and decodes.
"""

import math
from collections.abc import Callable

import torch
from PIL import Image

from pipelines.types import SIZE_MULTIPLE_PIXELS

MOST_PREVIEWS = 8
"""Of one image: its first step, and then every so many."""

PATCH = 2
"""Colours of one token, in each direction."""

FIT_SIDE_PIXELS = 128
FIT_PICTURES = 10
FIT_SEED = 0
RIDGE = 1e-3
"""How strongly the fit prefers small weights: channels that the pictures hardly move stay quiet."""

Roundtrip = Callable[[torch.Tensor], tuple[torch.Tensor, Image.Image]]
"""Takes a picture (1, 3, H, W) in [-1, 1]; returns its tokens (1, S, C), and these decoded."""


class LatentColours:
    """The linear map from tokens to colours: (C + 1, 12) on the device; the last row is added."""

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights

    @classmethod
    def fit(cls, roundtrip: Roundtrip, device: torch.device) -> "LatentColours":
        """Fit the map to a VAE. The same VAE always gives the same map."""
        tokens, colours = [], []
        for picture in _make_pictures():
            latents, decoded = roundtrip(picture)
            tokens.append(latents[0].double().cpu())
            colours.append(_colours_of(decoded))
        known, wanted = _with_ones(torch.cat(tokens)), torch.cat(colours)
        gram = known.T @ known
        ridge = RIDGE * len(known) * torch.eye(len(gram), dtype=gram.dtype)
        ridge[-1, -1] = 0.0
        weights = torch.linalg.lstsq(gram + ridge, known.T @ wanted).solution
        return cls(weights.float().to(device))

    def paint(self, tokens: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Turn tokens (1, S, C) of an image of this size into its colours, (H, W, 3) of bytes.

        Queued on the device like a step: nothing is waited for.
        """
        rows, columns = height // SIZE_MULTIPLE_PIXELS, width // SIZE_MULTIPLE_PIXELS
        colours = torch.addmm(self._weights[-1], tokens[0].float(), self._weights[:-1])
        grid = colours.view(rows, columns, PATCH, PATCH, 3).permute(0, 2, 1, 3, 4)
        pixels = grid.reshape(rows * PATCH, columns * PATCH, 3)
        return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


class PreviewSeries:
    """The previews of one image on its way through the steps.

    What is painted with a step is read one step later, when the device is known to be past it: so
    the host never waits for a preview.
    """

    def __init__(self, colours: LatentColours, width: int, height: int, steps: int) -> None:
        self._colours = colours
        self._size = (width, height)
        self._steps = steps
        self._every = math.ceil(steps / MOST_PREVIEWS)
        self._painted: torch.Tensor | None = None
        self._before: torch.Tensor | None = None

    def note(self, latents: torch.Tensor, velocity: torch.Tensor, sigma: float, index: int) -> None:
        """Paint the clean image as step `index` estimates it, if it is this one's turn.

        To be told of every step. `latents` (1, S, C) are those before it; the last one's estimate
        is the image itself.
        """
        self._before, self._painted = self._painted, None
        if index % self._every == 0 and index + 1 < self._steps:
            clean = latents.float() - sigma * velocity.float()
            self._painted = _to_host(self._colours.paint(clean, *self._size))

    def take(self) -> Image.Image | None:
        """Return what was painted with the step before the last; the device must be past it."""
        return None if self._before is None else Image.fromarray(self._before.numpy())


def _to_host(pixels: torch.Tensor) -> torch.Tensor:
    """Start to copy; on a CUDA device the copy is there when all that was queued before is done."""
    if pixels.device.type != "cuda":
        return pixels.cpu()
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    return host.copy_(pixels, non_blocking=True)


def _with_ones(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([tokens, torch.ones(len(tokens), 1, dtype=tokens.dtype)], dim=1)


def _colours_of(picture: Image.Image) -> torch.Tensor:
    """Return the colours (S, 12), from 0 to 1, that a preview of this picture should have."""
    width, height = picture.size
    rows, columns = height // SIZE_MULTIPLE_PIXELS, width // SIZE_MULTIPLE_PIXELS
    small = picture.resize((columns * PATCH, rows * PATCH), Image.Resampling.BOX)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).double() / 255
    grid = pixels.view(rows, PATCH, columns, PATCH, 3).permute(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, PATCH * PATCH * 3)


def _make_pictures() -> list[torch.Tensor]:
    """Make pictures (1, 3, H, W) in [-1, 1] of coloured noise, from large soft areas to detail."""
    generator = torch.Generator("cpu").manual_seed(FIT_SEED)
    side, pictures = FIT_SIDE_PIXELS, []
    for number in range(FIT_PICTURES):
        picture = torch.zeros(1, 3, side, side)
        for cells in (2, 4, 8, 16, 32, 64):
            noise = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
            mode = "nearest" if number % 2 else "bilinear"
            grown = torch.nn.functional.interpolate(noise, size=(side, side), mode=mode)
            picture += grown * 1.5 / cells ** (0.25 * (1 + number % 3))
        pictures.append(picture.clamp(-1, 1))
    return pictures
