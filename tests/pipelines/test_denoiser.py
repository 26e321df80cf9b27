"""One step taken apart: together it is `Flux2Transformer2DModel.forward`; residuals are a line."""

from typing import Any

import pytest
import torch

from pipelines.denoiser import Context, Denoiser, Pass, Residuals, lead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("references", [0, 30])
@torch.no_grad()
def test_a_step_is_the_transformer_s_forward_to_the_bit(
    oracle: Any, dtype: torch.dtype, references: int
) -> None:
    """With and without references, in both number formats."""
    transformer = type(oracle.transformer).from_config(oracle.transformer.config)
    transformer.load_state_dict(oracle.transformer.state_dict())
    transformer.to(dtype).eval()
    random = torch.Generator().manual_seed(1)

    def draw(tokens: int, width: int) -> torch.Tensor:
        return torch.randn(1, tokens, width, generator=random).to(dtype)

    latents, text = draw(48, 128), draw(512, 96)
    extra = draw(references, 128) if references else None
    image_ids = oracle._prepare_latent_ids(torch.empty(1, 1, 6, 8))
    if extra is not None:
        reference_ids = oracle._prepare_image_ids([torch.empty(1, 1, 5, 6)])
        image_ids = torch.cat([image_ids, reference_ids], dim=1)
    text_ids = oracle._prepare_text_ids(text)
    level = torch.tensor([683.25])
    expected = transformer(
        hidden_states=latents if extra is None else torch.cat([latents, extra], dim=1),
        timestep=level.to(dtype) / 1000,
        guidance=torch.tensor([2.7]),
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0][:, :48]

    denoiser = Denoiser(transformer)
    context = denoiser.prepare(text, text_ids, image_ids, extra, 2.7)
    embedded_level = denoiser.embed_level(level.to(dtype), context)
    hidden = denoiser.run_blocks(denoiser.embed(latents), embedded_level, context)
    assert hidden.shape[1] == 48 + references
    assert torch.equal(denoiser.project(hidden, embedded_level, 48), expected)


def test_what_blocks_add_is_extrapolated_along_a_line() -> None:
    """Two computed steps tell any level between, before or after exactly if it is a line."""
    residuals = Residuals()
    start, slope = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 8.0])
    residuals.note(0.75, start + 0.75 * slope)
    assert torch.equal(residuals.at(0.5), start + 0.75 * slope)  # one alone is taken as it is
    residuals.note(0.5, start + 0.5 * slope)
    for sigma in (0.75, 0.5, 0.375, 0.25, 0.0):
        assert torch.equal(residuals.at(sigma), start + sigma * slope)


def test_only_the_last_two_steps_are_remembered() -> None:
    """An older one neither counts nor takes memory."""
    residuals = Residuals()
    for sigma, added in ((1.0, 100.0), (0.5, 1.0), (0.25, 2.0)):
        residuals.note(sigma, torch.tensor(added))
    assert residuals.at(0.0).item() == 3.0


@torch.no_grad()
def test_passes_that_take_turns_are_what_each_is_alone(oracle: Any) -> None:
    """What is extrapolated for one prompt is never what another prompt's blocks added."""
    random = torch.Generator().manual_seed(1)
    denoiser = Denoiser(oracle.transformer)
    first, second = (torch.randn(1, 512, 96, generator=random) for _ in range(2))
    text_ids = oracle._prepare_text_ids(first)
    image_ids = oracle._prepare_latent_ids(torch.empty(1, 1, 4, 4))
    towards = denoiser.prepare(first, text_ids, image_ids, None, 1.0)
    away = denoiser.with_prompt(towards, second)
    sigmas, mask = (1.0, 0.8, 0.6, 0.4), (True, True, False, True)
    tokens = [torch.randn(1, 16, 128, generator=random) for _ in sigmas]

    def run(*passes: Pass) -> list[list[torch.Tensor]]:
        steps = []
        for sigma, computed, noisy in zip(sigmas, mask, tokens, strict=True):
            level = denoiser.embed_level(torch.tensor([1000 * sigma]), towards)
            embedded = denoiser.embed(noisy)
            steps.append(
                [one.velocity(embedded, level, sigma, computed=computed) for one in passes]
            )
        return [list(velocities) for velocities in zip(*steps, strict=True)]

    def make(context: Context) -> Pass:
        return Pass(denoiser, context, 16, has_gaps=True)

    together = run(make(towards), make(away))
    alone = run(make(towards)) + run(make(away))
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(together[0][2], together[1][2])


def test_true_guidance_goes_on_past_the_prompt() -> None:
    """From the negative prompt's velocity through the prompt's, as far as the scale says."""
    towards, away = torch.tensor([3.0]), torch.tensor([1.0])
    assert lead([towards], 5.0) is towards
    assert lead([towards, away], 1.0) == towards
    assert lead([towards, away], 5.0) == torch.tensor([11.0])
