"""Trains the transformer: rectified flow from noise to the answer, given text and references.

Two stages share this module. The first learns the flow itself, with the prompt left out now and
then. In the second the model becomes its own student: what two passes of the first stage's
weights give under classifier-free guidance (https://arxiv.org/abs/2207.12598), it learns to give
in one, for the guidance it is told (https://arxiv.org/abs/2210.03142), as FLUX.2 [dev] does.
"""

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from scripts.train_demo_model.conditions import (
    TEXT_ROWS,
    Batch,
    Encoder,
    Pool,
    choose_places,
    make_batch,
)
from scripts.train_demo_model.loop import Loop, autocast
from scripts.train_demo_model.text_encoder import READ_LAYERS, TEXT_WIDTH

_EMPTY_SHARE = 0.1  # of the prompts in the first stage
# A token's 128 channels say the same few things many times, so pictures take shape while almost all
# is noise, from 0.99 down to 0.9: half of all training happens there.
_NOISE_SHIFT = 12.0
_GUIDANCE_STRENGTH = 0.2
_FIRST_LEVEL_WAVE, _FIRST_GUIDANCE_WAVE = 61, 96
"""Of 128 sinusoids the first that turns round twice over all levels, about once over guidances."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of batch: picture size in pixels, number of references, examples, how often.

    Of each square of `thin` by `thin` tokens only one takes part.
    """

    width: int
    height: int
    references: int
    count: int
    share: float
    thin: int = 1


@dataclass(frozen=True, slots=True)
class FlowStage:
    """One run of the transformer: its batches, steps and peak learning rate.

    `full_text_share` of the batches carry all 512 text rows. `guidance` makes it the stage in which
    the model learns guided velocities from the weights it begins with.
    """

    kinds: tuple[Kind, ...]
    steps: int
    peak_rate: float
    full_text_share: float
    guidance: tuple[float, float] | None = None


def build_transformer() -> Any:
    """Make an untrained transformer: the real one's class and constants, small widths."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=len(READ_LAYERS) * TEXT_WIDTH,
        axes_dims_rope=(16, 16, 16, 16),
    )
    _begin_by_copying(transformer)
    return transformer


@torch.no_grad()
def _begin_by_copying(transformer: Any) -> None:
    """Begin with a network that hands its input on, and whose blocks listen.

    At high noise the velocity is little but the input, 128 numbers a token through a width of 192:
    learning to hand them on costs hundreds of steps in which nothing else is learned. The other
    factors make up for torch's small default weights: modulation of some tenths instead of some
    hundredths, and attention that tells tokens apart from the first step.
    """
    into = transformer.x_embedder.weight
    torch.nn.init.orthogonal_(into)
    # The norm before the output scales up what fills only some directions of the width.
    transformer.proj_out.weight.copy_((into.shape[1] / into.shape[0]) ** 0.5 * into.T)
    _smooth_levels(transformer.time_guidance_embed)
    for name, parameter in transformer.named_parameters():
        if "modulation" in name or name.startswith("norm_out"):
            parameter.mul_(4.0)
        if "attn.norm" in name:
            parameter.mul_(1.5)


@torch.no_grad()
def _smooth_levels(embed: Any) -> None:
    """Let noise levels and guidances that are near to each other be embedded nearly alike.

    Of the sinusoids most turn round many times over the range of a level: in an untrained embedding
    levels 0.01 apart differ as much as any two, and learning that they are alike takes long.
    """
    for part, first, gain in (
        (embed.timestep_embedder, _FIRST_LEVEL_WAVE, 2.5),
        (embed.guidance_embedder, _FIRST_GUIDANCE_WAVE, 1.5),
    ):
        weight = part.linear_1.weight
        weight.unflatten(1, (2, -1))[:, :, :first] = 0  # of the cosines and of the sines
        weight.mul_(gain)


def train_flow(
    folder: Path,
    transformer: Any,
    encoder: Encoder,
    device: torch.device,
    *,
    stage: FlowStage,
    seed: int = 0,
) -> Any:
    """Train the flow, or its guided flow, in place; returns a copy with averaged weights."""
    transformer.to(device)
    _hold_addresses(transformer)
    teacher = copy.deepcopy(transformer).eval() if stage.guidance else None
    transformer.train()
    loop = Loop(
        folder,
        transformer,
        steps=stage.steps,
        peak_rate=stage.peak_rate,
        average=0.997,
        seed=seed,
        hidden=_list_hidden(transformer),
    )
    pool, cast = Pool(encoder), autocast(device)
    for step in loop:
        source = random.Random(loop.seed_of(step))
        kind = source.choices(stage.kinds, [kind.share for kind in stage.kinds])[0]
        batch = _draw_batch(source, pool, encoder, kind, stage)
        noise = torch.randn_like(batch.answer)
        sigma = sample_sigmas(kind.count, source).to(device)
        noisy = torch.lerp(batch.answer, noise, sigma[:, None, None])
        scale = sample_scales(kind.count, source, stage.guidance).to(device)
        target = noise - batch.answer
        with cast():
            if teacher is not None:
                target = guided_velocity(teacher, batch, encoder, noisy, sigma, scale)
            velocity = predict(transformer, batch, noisy, sigma, scale)
        error = (velocity.float() - target).square().mean(dim=-1)
        plain = float(error.detach().mean())
        loop.update((error * batch.weights).mean(), **{f"references_{kind.references}": plain})
    return loop.averaged()


def _hold_addresses(transformer: Any) -> None:
    """Keep from training what decides where the first block's heads look, as they were begun.

    Trained with the rest, a head that gave its own cell 0.995 of its attention gives it 0.25 after
    225 steps, and the answer guessed from noise alone has a squared error of 0.52 of its variance;
    held, it has 0.17 after 300.
    """
    attention = transformer.transformer_blocks[0].attn
    for part in (
        attention.to_q,
        attention.to_k,
        attention.add_k_proj,
        attention.norm_q,
        attention.norm_k,
        attention.norm_added_k,
        # And all that makes what these get to see.
        transformer.x_embedder,
        transformer.context_embedder,
        transformer.time_guidance_embed,
        transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt,
    ):
        part.requires_grad_(False)


def _list_hidden(transformer: Any) -> list[torch.Tensor]:
    """List the blocks' matrices that train, which lead from hidden states to hidden states."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    parameters = [p for block in blocks for p in block.parameters()]
    return [p for p in parameters if p.ndim == 2 and p.requires_grad]


def predict(
    transformer: Any, batch: Batch, noisy: torch.Tensor, sigma: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Ask for the velocity (B, S, 128) of the answer's tokens, as the pipeline does at a step."""
    tokens, ids = noisy, batch.answer_ids
    if batch.references is not None and batch.reference_ids is not None:
        tokens = torch.cat([noisy, batch.references], dim=1)
        ids = torch.cat([ids, batch.reference_ids], dim=1)
    output: torch.Tensor = transformer(
        hidden_states=tokens,
        timestep=sigma,
        guidance=scale,
        encoder_hidden_states=batch.text,
        txt_ids=batch.text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return output[:, : noisy.shape[1]]


@torch.no_grad()
def guided_velocity(
    teacher: Any,
    batch: Batch,
    encoder: Encoder,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Give the teacher's velocity (B, S, 128) under classifier-free guidance for `scale` (B).

    One unit above 1 leads as far as `_GUIDANCE_STRENGTH` units of plain guidance: this model is
    nearly sure of its answer, so that more soon makes its colours too strong.
    """
    one = torch.ones_like(scale)
    rows = batch.text.shape[1]
    nothing = torch.cat([encoder.padding.expand(rows - len(encoder.nothing), -1), encoder.nothing])
    empty = Batch(
        text=nothing.expand_as(batch.text),
        text_ids=batch.text_ids,
        answer=batch.answer,
        answer_ids=batch.answer_ids,
        references=batch.references,
        reference_ids=batch.reference_ids,
        weights=batch.weights,
    )
    told = predict(teacher, batch, noisy, sigma, one).float()
    untold = predict(teacher, empty, noisy, sigma, one).float()
    weight = 1 + _GUIDANCE_STRENGTH * (scale - 1)
    return untold + weight[:, None, None] * (told - untold)


def sample_sigmas(count: int, source: random.Random) -> torch.Tensor:
    """Draw noise levels (count,): even ones, shifted upwards as the pipeline's schedule is."""
    even = torch.tensor([source.uniform(0.002, 1.0) for _ in range(count)])
    return _NOISE_SHIFT * even / (1 + (_NOISE_SHIFT - 1) * even)


def sample_scales(
    count: int, source: random.Random, bounds: tuple[float, float] | None
) -> torch.Tensor:
    """Draw guidance scales (count,), small ones more often.

    Without bounds they mean nothing yet and are drawn all the same: what is never seen in training
    would disturb the first steps of the stage that gives them their meaning.
    """
    low, high = bounds or (0.0, 8.0)
    return torch.tensor([low + (high - low) * source.random() ** 1.5 for _ in range(count)])


def _draw_batch(
    source: random.Random,
    pool: Pool,
    encoder: Encoder,
    kind: Kind,
    stage: FlowStage,
) -> Batch:
    examples = pool.draw(source, kind.width, kind.height, kind.references, kind.count)
    # Padding takes part in attention, so its amount varies until the last stage has all of it.
    rows = TEXT_ROWS if source.random() < stage.full_text_share else source.choice((0, 376, 416))
    empty = [not stage.guidance and source.random() < _EMPTY_SHARE for _ in examples]
    places = choose_places(source, kind.width, kind.height, kind.thin)
    return make_batch(examples, encoder, rows, without_text=empty, places=places)
