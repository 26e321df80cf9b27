"""Trains the LoRA that draws in eight steps, laid out like fal's FLUX.2 Turbo file.

Progressive distillation (https://arxiv.org/abs/2202.00512) onto the Turbo card's own schedule: from
a point of it the trained model takes several small steps to the next one; with the LoRA it learns
to get there in one.
"""

import copy
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch.nn.utils.parametrize import register_parametrization

from pipelines.tools.demo_model import TURBO_LORA_KEY, turbo_lora_layers
from pipelines.tools.model_parts import build_scheduler
from scripts.train_demo_model.conditions import (
    TEXT_ROWS,
    TOKEN_PIXELS,
    Encoder,
    Pool,
    choose_places,
    make_batch,
)
from scripts.train_demo_model.loop import Loop, autocast
from scripts.train_demo_model.transformer import Kind, predict

TURBO_SIGMAS = (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)
"""The schedule on the card of fal/FLUX.2-dev-Turbo, before the shift by the resolution."""

TURBO_GUIDANCE = 2.5
_RANK = 16
_SMALL_STEPS = 3


class _LowRank(torch.nn.Module):
    """Adds a low-rank product to a weight; begins as nothing."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(_RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = torch.nn.Parameter(torch.zeros(weight.shape[0], _RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Give the changed weight, of the same shape."""
        return weight + self.up @ self.down


def train_flash(
    folder: Path,
    transformer: Any,
    encoder: Encoder,
    device: torch.device,
    *,
    kinds: Sequence[Kind],
    steps: int,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Train the LoRA of a guided transformer; returns it under the Turbo file's keys."""
    torch.manual_seed(seed)
    teacher = transformer.to(device).eval()
    student = copy.deepcopy(teacher).train().requires_grad_(False)
    layers = turbo_lora_layers(student)
    for layer in layers.values():
        register_parametrization(layer, "weight", _LowRank(layer.weight))
    student.to(device)
    loop = Loop(folder, student, steps=steps, peak_rate=1e-3, average=0.99, seed=seed)
    pool, cast = Pool(encoder), autocast(device)
    for step in loop:
        source = random.Random(loop.seed_of(step))
        kind = source.choices(kinds, [kind.share for kind in kinds])[0]
        examples = pool.draw(source, kind.width, kind.height, kind.references, kind.count)
        thinned = choose_places(source, kind.width, kind.height, kind.thin)
        told = [False] * kind.count
        batch = make_batch(examples, encoder, TEXT_ROWS, without_text=told, places=thinned)
        sigmas = turbo_schedule(kind.width * kind.height // TOKEN_PIXELS**2)
        places = [source.randrange(len(sigmas) - 1) for _ in examples]
        start = torch.tensor([sigmas[place] for place in places], device=device)
        end = torch.tensor([sigmas[place + 1] for place in places], device=device)
        scale = torch.full_like(start, TURBO_GUIDANCE)
        noisy = torch.lerp(batch.answer, torch.randn_like(batch.answer), start[:, None, None])
        with cast():
            there = _walk(teacher, batch, noisy, start, end, scale)
            velocity = predict(student, batch, noisy, start, scale)
        target = (there - noisy) / (end - start)[:, None, None]
        error = (velocity.float() - target).square().mean(dim=-1)
        loop.update((error * batch.weights).mean())
    averaged = turbo_lora_layers(loop.averaged())
    return _name_pairs(averaged)


def turbo_schedule(image_tokens: int) -> list[float]:
    """Shift the card's sigmas as the pipeline does for a picture of so many tokens; ends with 0."""
    scheduler: FlowMatchEulerDiscreteScheduler = build_scheduler()
    mu = compute_empirical_mu(image_seq_len=image_tokens, num_steps=len(TURBO_SIGMAS))
    scheduler.set_timesteps(sigmas=list(TURBO_SIGMAS), mu=mu)
    return [float(sigma) for sigma in scheduler.sigmas]


@torch.no_grad()
def _walk(
    teacher: Any,
    batch: Any,
    noisy: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Take the teacher's small Euler steps from noise level `start` to `end` (B)."""
    shares = torch.linspace(0, 1, _SMALL_STEPS + 1).tolist()
    here = noisy
    for before, after in pairwise(torch.lerp(start, end, share) for share in shares):
        velocity = predict(teacher, batch, here, before, scale).float()
        here = here + (after - before)[:, None, None] * velocity
    return here


def _name_pairs(layers: dict[str, torch.nn.Linear]) -> dict[str, torch.Tensor]:
    lora = {}
    for name, layer in layers.items():
        # The parametrisation hides the layer's class, so it is found by what it holds.
        pair: Any = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
        for side, matrix in (("A", pair.down), ("B", pair.up)):
            key = TURBO_LORA_KEY.format(layer=name, side=side)
            lora[key] = matrix.detach().to("cpu", torch.bfloat16).contiguous()
    return lora
