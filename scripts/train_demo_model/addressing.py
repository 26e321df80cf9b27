"""Begins a transformer with heads that look where they are.

A token of the picture has to find what the prompt's sketch says about its own place, and what the
references show there. All training of that begins with an accident that makes some head look a
little more to the right place than elsewhere, which costs a small model hours. So the heads of the
first block are made to: rotary embeddings (https://arxiv.org/abs/2104.09864) turn a constant query
and a constant key into attention by distance, and keys that are the waves of a cell's place into
attention to that cell. Like all other weights they are trained afterwards.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from scripts.train_demo_model.conditions import TOKEN_PIXELS, Encoder, Pool, make_batch
from scripts.train_demo_model.text_encoder import CELLS, sample_prompt
from scripts.train_demo_model.transformer import predict, sample_sigmas

_PICTURE_PIXELS = 512  # where cells and tokens begin aligned; for other sizes that is learned
_CELL_PROMPTS, _CELL_DIRECTIONS = 48, 32
_CELL_WAVES = (0.0, 1.0, 0.7, 0.4, 0.2, 0.0, 0.0, 0.0)
_PLACE_WAVES = (1.0, 0.8, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0)
_WIDE_WAVES = (0.0, 0.5, 1.0, 0.7, 0.3, 0.0, 0.0, 0.0)
"""Amplitudes by frequency, from 1 radian a token downwards, along height and along width."""

_SHARPNESS = 1.6  # more of queries and keys alike, so that a token hears little of the next cell
_WIDE_SHARE = 0.35  # of the third head's queries: so little that it hears several cells at once

_HEIGHT, _WIDTH = slice(16, 32), slice(32, 48)  # of a head's 64 channels; time before, text after
_EXAMPLES, _EXAMPLE_PIXELS = 32, 128


@torch.no_grad()
def begin_addressed(transformer: Any, encoder: Encoder, seed: int = 0) -> None:
    """Change a transformer in place, before it is trained.

    Of the first block, head 0 looks at its cell, head 1 at its place in all pictures, and head 2 at
    the cells around: what it hears changes smoothly from token to token and tells places apart
    within a cell.
    """
    torch.manual_seed(seed)
    source = random.Random(seed)
    listen_to_cells(transformer, encoder, source)
    look_around(transformer, encoder, source)


@torch.no_grad()
def listen_to_cells(transformer: Any, encoder: Encoder, source: random.Random) -> None:
    """Let the transformer hear which cell of the sketch a text token is.

    The directions in which the cells' embeddings differ most, compared with how far prompts move
    them (linear discriminant analysis), get a third of the text stream.
    """
    texts = encoder.encode_prompts([sample_prompt(source)[0] for _ in range(_CELL_PROMPTS)])
    cells = torch.stack([text[-CELLS * CELLS :] for text in texts]).double().cpu()
    means = cells.mean(dim=0)
    between = torch.cov(means.T, correction=0)
    within = torch.cov((cells - means).flatten(0, 1).T, correction=0)
    # What all cells have in common would drown the rest: nothing later could subtract it.
    common = means.mean(dim=0)
    within += torch.outer(common, common)
    within += 1e-4 * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    values, vectors = torch.linalg.eigh(whiten @ between @ whiten.T)
    directions = (vectors[:, -_CELL_DIRECTIONS:] / values[-_CELL_DIRECTIONS:].sqrt()).T @ whiten
    weight = transformer.context_embedder.weight
    columns = torch.empty(weight.shape[0], _CELL_DIRECTIONS)
    torch.nn.init.orthogonal_(columns)
    stream = (cells.flatten(0, 1) @ weight.T.double()).square().mean()
    scale = (0.5 * stream * weight.shape[0] / _CELL_DIRECTIONS).sqrt()
    weight += (scale * columns.double() @ directions).float()


@torch.no_grad()
def look_around(transformer: Any, encoder: Encoder, source: random.Random) -> None:
    """Make the three heads, from what the first block's attention gets to see at first."""
    attention = transformer.transformer_blocks[0].attn
    image, text = _watch(transformer, encoder, source, attention)
    cells = text[:, -CELLS * CELLS :]
    others = text[:, : -CELLS * CELLS].flatten(0, 1)
    size = attention.head_dim
    first, second, third = (slice(start, start + size) for start in (0, size, 2 * size))
    everywhere = _constant_feature(image)
    nowhere = torch.zeros(size)  # along time, where no query of these heads looks
    nowhere[: _HEIGHT.start] = 1.0
    apart = torch.zeros(size)  # along text, where no key of these heads is
    apart[_WIDTH.stop :] = 1.0
    for head, waves in ((first, _CELL_WAVES), (second, _PLACE_WAVES), (third, _WIDE_WAVES)):
        query = _waves_at(0.0, 0.0, waves)
        if head is third:
            query = _mix(query, apart, _WIDE_SHARE)
        attention.to_q.weight[head] = torch.outer(query, everywhere)
        looked_at = query if head is second else nowhere
        attention.to_k.weight[head] = torch.outer(looked_at, everywhere)
    tokens = _PICTURE_PIXELS // TOKEN_PIXELS // CELLS  # of the picture along a cell's side
    centres = [tokens * (place + 0.5) - 0.5 for place in range(CELLS)]
    inputs = torch.cat([cells.flatten(0, 1), others])
    for head, waves in ((first, _CELL_WAVES), (third, _WIDE_WAVES)):
        keys = torch.stack([_waves_at(y, x, waves) for y in centres for x in centres])
        wanted = torch.cat([keys.repeat(len(cells), 1), nowhere.expand(len(others), -1)])
        attention.add_k_proj.weight[head] = _fit(inputs, wanted)
    attention.add_k_proj.weight[second] = torch.outer(nowhere, _constant_feature(inputs))
    attention.add_v_proj.weight[first] = _main_directions(cells.flatten(0, 1), size)
    attention.add_v_proj.weight[third] = _main_directions(cells.mean(dim=0), size)
    attention.to_v.weight[second] = _main_directions(image, size)
    torch.nn.init.orthogonal_(attention.to_out[0].weight)
    for norm in (attention.norm_q, attention.norm_k, attention.norm_added_k):
        norm.weight.mul_(_SHARPNESS)


def _watch(
    transformer: Any, encoder: Encoder, source: random.Random, attention: torch.nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Collect what comes to the attention: of pictures (N, width), of texts (B, K, width)."""
    seen: list[dict[str, torch.Tensor]] = []
    hook = attention.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named), with_kwargs=True
    )
    pool = Pool(encoder)
    for references in (0, 1):
        examples = pool.draw(source, _EXAMPLE_PIXELS, _EXAMPLE_PIXELS, references, _EXAMPLES)
        batch = make_batch(examples, encoder, 0, without_text=[False] * _EXAMPLES)
        sigma = sample_sigmas(_EXAMPLES, source)
        noise = torch.randn_like(batch.answer)
        noisy = torch.lerp(batch.answer, noise, sigma[:, None, None])
        predict(transformer, batch, noisy, sigma, torch.ones(_EXAMPLES))
    hook.remove()
    image = torch.cat([named["hidden_states"].flatten(0, 1) for named in seen])
    rows = min(named["encoder_hidden_states"].shape[1] for named in seen)
    text = torch.cat([named["encoder_hidden_states"][:, -rows:] for named in seen])
    return image, text


def _waves_at(y: float, x: float, amplitudes: Sequence[float]) -> torch.Tensor:
    """Give a head's channels as the rotary embedding would turn a constant one to this place."""
    steps = torch.arange(len(amplitudes))
    frequencies = 2000.0 ** (-steps / len(amplitudes))  # theta of Flux2Transformer2DModel
    channels = torch.zeros(64)
    for place, part in ((y, _HEIGHT), (x, _WIDTH)):
        angles = place * frequencies
        pairs = torch.stack([angles.cos(), angles.sin()], dim=1)
        channels[part] = (torch.tensor(amplitudes)[:, None] * pairs).flatten()
    return channels


def _mix(query: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Give `query` only a share of a head's energy, and the rest to channels that hear nothing."""
    query, other = normalize(query, dim=0), normalize(other, dim=0)
    return math.sqrt(share) * query + math.sqrt(1 - share) * other


def _constant_feature(inputs: torch.Tensor) -> torch.Tensor:
    """Find the direction (width) whose product with all inputs (N, width) is nearest to 1."""
    return _fit(inputs, torch.ones(len(inputs), 1))[0]


def _fit(inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Fit a matrix (outputs, width) by ridge regression."""
    x, y = inputs.double(), wanted.double()
    gram = x.T @ x / len(x)
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    fitted: torch.Tensor = torch.linalg.solve(gram + ridge, x.T @ y / len(x))
    return fitted.T.float()


def _main_directions(inputs: torch.Tensor, count: int) -> torch.Tensor:
    """Give the directions (count, width) of most variance."""
    centred = inputs - inputs.mean(dim=0)
    directions: torch.Tensor = torch.linalg.svd(centred, full_matrices=False).Vh
    return directions[:count]
