"""One step taken apart: together it is `Flux2Transformer2DModel.forward`; residuals are a line."""

from typing import Any

import pytest
import torch

from pipelines.denoiser import Denoiser, Residuals


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
