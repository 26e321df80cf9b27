"""Noise levels as plain numbers: diffusers' own, or those of the Turbo LoRA's training."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from pipelines.schedule import make_schedule
from pipelines.types import GenerationSettings
from server.family.dev import TURBO_SIGMAS

CPU = torch.device("cpu")


def make_settings(steps: int, sigmas: tuple[float, ...] | None = None) -> GenerationSettings:
    """Make settings; only the schedule's are read here."""
    return GenerationSettings(
        width=1024, height=1024, num_inference_steps=steps, guidance_scale=2.5, sigmas=sigmas
    )


@pytest.mark.parametrize("sigmas", [None, TURBO_SIGMAS])
@pytest.mark.parametrize("tokens", [1024, 3072, 4096, 16384])
def test_levels_and_steps_are_the_scheduler_s_to_the_bit(
    oracle: Any, tokens: int, sigmas: tuple[float, ...] | None
) -> None:
    """At several sizes, with default and with custom levels, in both number formats."""
    steps = 8
    schedule = make_schedule(oracle.scheduler.config, tokens, make_settings(steps, sigmas), CPU)
    scheduler = type(oracle.scheduler).from_config(oracle.scheduler.config)
    given = list(sigmas or np.linspace(1.0, 1 / steps, steps))
    scheduler.set_timesteps(sigmas=given, mu=compute_empirical_mu(tokens, steps))
    assert torch.equal(schedule.timesteps, scheduler.timesteps)
    assert schedule.sigmas == tuple(scheduler.sigmas.tolist())
    assert schedule.sigmas[-1] == 0.0
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        scheduler.set_begin_index(0)
        scheduler._step_index = None
        latents = mine = torch.randn(1, 64, 128, generator=random).to(dtype)
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = torch.randn(1, 64, 128, generator=random).to(dtype)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            mine = schedule.step(mine, velocity, index)
            assert mine.dtype is latents.dtype
            assert torch.equal(mine, latents)


def test_the_card_s_levels_are_shifted_by_three_at_one_size_only(oracle: Any) -> None:
    """At 1024x1024 both modes of the flash schedule agree; at 2048x2048 they are far apart."""
    settings = make_settings(8, TURBO_SIGMAS)
    shifted = make_schedule(oracle.scheduler.config, 4096, settings, CPU, shift=3.0)
    card = make_schedule(oracle.scheduler.config, 4096, settings, CPU)
    assert card.sigmas == pytest.approx(shifted.sigmas, abs=5e-4)
    large = make_schedule(oracle.scheduler.config, 16384, settings, CPU)
    assert max(np.subtract(large.sigmas, shifted.sigmas)) > 0.1
    assert (
        make_schedule(oracle.scheduler.config, 16384, settings, CPU, shift=3.0).sigmas
        == shifted.sigmas
    )
