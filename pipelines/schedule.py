"""Noise levels as plain numbers, made once for a request: nothing is asked of the device later."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, retrieve_timesteps

from pipelines.types import GenerationSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The noise levels of N steps: `sigmas` has N + 1, from 1 down to 0.

    The tensors are float32 on the device and are only ever read there.
    """

    sigmas: tuple[float, ...]
    timesteps: torch.Tensor
    """(N,): the levels times 1000, as the transformer is told them."""
    widths: torch.Tensor
    """(N,): from each level to the next. No Python numbers, which round differently in bfloat16."""

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        """Go from level `index` to the next along `velocity`, as Euler's method does.

        Both are (1, S, C). The arithmetic is `FlowMatchEulerDiscreteScheduler.step`'s: in float32,
        rounded to the type of `velocity`.
        """
        return (latents.float() + self.widths[index] * velocity).to(velocity.dtype)


def make_schedule(
    config: Any,
    image_tokens: int,
    settings: GenerationSettings,
    device: torch.device,
    *,
    shift: float | None = None,
) -> Schedule:
    """Make the schedule that `Flux2Pipeline` takes for a picture of so many tokens.

    `config` is the model's scheduler config. Custom sigmas are shifted by the resolution like the
    default ones, as the Turbo model card's own code does. With `shift` the levels are instead
    those of a linear schedule from 1 to 0.001 shifted by it, at every resolution: with 3, what
    the Turbo LoRA was trained on.
    """
    steps = settings.num_inference_steps
    if shift is not None:
        linear = np.linspace(1.0, 0.001, steps, dtype=np.float32)
        shifted = torch.from_numpy(shift * linear / (1 + (shift - 1) * linear))
        return _on_device(torch.cat([shifted, torch.zeros(1)]), shifted * 1000, device)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    sigmas: Any = settings.sigmas
    if sigmas is None:
        sigmas = np.linspace(1.0, 1 / steps, steps)
    mu = compute_empirical_mu(image_seq_len=image_tokens, num_steps=steps)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=list(sigmas), mu=mu)
    return _on_device(scheduler.sigmas, scheduler.timesteps, device)


def _on_device(sigmas: torch.Tensor, timesteps: torch.Tensor, device: torch.device) -> Schedule:
    widths = sigmas[1:] - sigmas[:-1]
    return Schedule(tuple(sigmas.tolist()), timesteps.to(device), widths.to(device))
