"""Begins a transformer with heads that look where they are.

A token of the picture has to find what the prompt's sketch says about its own place, and what the
references show there. All training of that begins with an accident that makes some head look a
little more to the right place than elsewhere, which costs a small model hours. So the heads of the
first block are made to: rotary embeddings (https://arxiv.org/abs/2104.09864) turn a constant query
and a constant key into attention by distance, and keys that are the waves of a cell's place into
attention to that cell. `train_flow` holds them so while all else trains.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from scripts.train_demo_model.cells import CELL_SHARES, CELLS, cut_cells
from scripts.train_demo_model.conditions import Encoder, Pool, make_batch
from scripts.train_demo_model.examples import sketch
from scripts.train_demo_model.text_encoder import (
    PLACE_SIZE,
    PLACES,
    READ_LAYERS,
    TEXT_WIDTH,
    cell_places,
    sample_prompt,
)
from scripts.train_demo_model.transformer import predict, sample_sigmas

_CELL_PROMPTS = 128
_SHARE_SIZE, _PLACE_SIZE, _REST_SIZE = 0.25, 3.0, 0.4
"""How large in the text stream are shares' logits, a cell's place, each direction of the rest."""

_CELL_WAVES = (0.7, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0)
_PLACE_WAVES = (1.0, 0.8, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0)
_WIDE_WAVES = (0.0, 0.5, 1.0, 0.7, 0.0, 0.0, 0.0, 0.0)
"""Amplitudes by frequency, from 1 radian a token downwards, along height and along width."""

_SHARPNESS = 1.6  # more of queries and keys alike, so that a token hears little of the next cell
_SHIFT_SIZE = 0.6  # of what every token has in common, beside signals of about 1
_WIDE_SHARE = 0.35  # of the third head's queries: so little that it hears several cells at once

_TIME, _HEIGHT, _WIDTH, _TEXT = (slice(16 * axis, 16 * (axis + 1)) for axis in range(4))
"""The axes' shares of a head's channels."""

_EXAMPLES, _EXAMPLE_PIXELS = 32, 128


@torch.no_grad()
def begin_addressed(transformer: Any, encoder: Encoder, seed: int = 0) -> None:
    """Change a transformer in place, before it is trained.

    Of the first block, head 0 looks at its cell, head 1 at its place in all pictures, and head 2 at
    the cells around.
    """
    torch.manual_seed(seed)
    source = random.Random(seed)
    _steady_double_blocks(transformer)
    contents = _find_contents(encoder, source)
    _listen_to_cells(transformer, contents)
    _look_around(transformer, encoder, source, contents)


@torch.no_grad()
def _listen_to_cells(transformer: Any, contents: torch.Tensor) -> None:
    """Let the text stream hold what cells say, each thing in a direction of its own.

    `contents` (things, text width) tells them from an embedding; of the rest of an embedding each
    of the other directions gets a little.
    """
    weight = transformer.context_embedder.weight
    directions = torch.linalg.qr(torch.randn(len(weight), len(weight))).Q
    rest = normalize(torch.randn(len(weight) - len(contents), weight.shape[1]))
    weight.copy_(directions @ torch.cat([contents, _REST_SIZE * rest]))


@torch.no_grad()
def _look_around(
    transformer: Any, encoder: Encoder, source: random.Random, contents: torch.Tensor
) -> None:
    """Make the three heads, from what the first block's attention gets to see at first."""
    attention = transformer.transformer_blocks[0].attn
    seen = _watch(transformer, encoder, source, attention)
    cells = seen.cells.flatten(0, 1)
    size = attention.head_dim
    first, second, third = (slice(start, start + size) for start in (0, size, 2 * size))
    everywhere = _constant_feature(seen.image)
    nowhere, apart = _in_channels(_TIME), _in_channels(_TEXT)  # where no query, no key looks
    for head, waves in ((first, _CELL_WAVES), (second, _PLACE_WAVES), (third, _WIDE_WAVES)):
        query = _shape(waves)
        if head is third:
            query = _mix(query, apart, _WIDE_SHARE)
        attention.to_q.weight[head] = torch.outer(query, everywhere)
        looked_at = query if head is second else nowhere
        attention.to_k.weight[head] = torch.outer(looked_at, everywhere)
    inputs = torch.cat([cells, seen.others])
    for head, waves in ((first, _CELL_WAVES), (third, _WIDE_WAVES)):
        keys = _place_keys(waves).repeat(len(seen.cells), 1)
        wanted = torch.cat([keys, nowhere.expand(len(seen.others), -1)])
        attention.add_k_proj.weight[head] = _fit(inputs, wanted)
    attention.add_k_proj.weight[second] = torch.outer(nowhere, _constant_feature(inputs))
    told = _fit(cells, seen.texts.flatten(0, 1) @ contents.T)
    others = _main_directions(cells, size - len(told))
    for head in (first, third):
        attention.add_v_proj.weight[head] = torch.cat([told, others])
    attention.to_v.weight[second] = _main_directions(seen.image, size)
    # What the first head hears goes where the picture's own tokens have nothing.
    pixels = transformer.x_embedder.weight
    free = torch.linalg.svd(pixels, full_matrices=True).U[:, pixels.shape[1] :]
    attention.to_out[0].weight.copy_(torch.cat([free, pixels], dim=1))
    for norm in (attention.norm_q, attention.norm_k, attention.norm_added_k):
        norm.weight.mul_(_SHARPNESS)


def _steady_double_blocks(transformer: Any) -> None:
    """Let the double blocks' attention see the same, and be heard as much, at any noise.

    Their modulation has six parts: shift, scale and gate, for attention and for the feed-forward.
    """
    width = transformer.x_embedder.weight.shape[0]
    sigma, scale = torch.rand(64), 8 * torch.rand(64)
    embedded = transformer.time_guidance_embed(1000 * sigma, 1000 * scale)
    open_gate = _constant_feature(torch.nn.functional.silu(embedded))
    for modulation in (
        transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt,
    ):
        shift, scaling, gate, _, _, later_gate = modulation.linear.weight.split(width)
        # A constant that is told apart by its direction: what queries and keys are made from.
        shift.copy_(torch.outer(_SHIFT_SIZE * torch.randn(width), open_gate))
        scaling.zero_()
        for part in (gate, later_gate):
            part.copy_(open_gate.expand(width, -1))


def _find_contents(encoder: Encoder, source: random.Random) -> torch.Tensor:
    """Find what tells a cell's content and place (things, text width) from its embedding."""
    pairs = [sample_prompt(source) for _ in range(_CELL_PROMPTS)]
    texts = encoder.encode_prompts([prompt for prompt, _ in pairs])
    # The last state read says it best, and a third of the channels is fitted to few prompts sooner.
    cells = torch.cat([text[-CELLS * CELLS :, -TEXT_WIDTH:] for text in texts]).cpu()
    shown = cut_cells([sketch(meaning, source) for _, meaning in pairs]).flatten(0, 1)
    shares = _SHARE_SIZE * _fit_logits(cells, shown[:, :CELL_SHARES])
    contents = torch.cat([shares, _fit(cells, shown[:, CELL_SHARES:])])
    states = len(READ_LAYERS)
    place = torch.zeros(PLACES, TEXT_WIDTH)
    place[:, -PLACES:] = _PLACE_SIZE / PLACE_SIZE / states * torch.eye(PLACES)
    unread = torch.zeros(len(contents), (states - 1) * TEXT_WIDTH)
    return torch.cat([torch.cat([unread, contents], dim=1), place.repeat(1, states)])


@dataclass(frozen=True, slots=True)
class _Seen:
    """What comes to a block's attention."""

    image: torch.Tensor  # (N, width)
    cells: torch.Tensor  # (B, cells, width)
    others: torch.Tensor  # (N, width): other tokens of the text
    texts: torch.Tensor  # (B, cells, text width): the cells' embeddings


def _watch(
    transformer: Any, encoder: Encoder, source: random.Random, attention: torch.nn.Module
) -> _Seen:
    """Collect what comes to the attention, of drawings at all noise levels."""
    seen: list[dict[str, torch.Tensor]] = []
    hook = attention.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named), with_kwargs=True
    )
    examples = Pool(encoder).draw(source, _EXAMPLE_PIXELS, _EXAMPLE_PIXELS, 0, _EXAMPLES)
    batch = make_batch(examples, encoder, 0, without_text=[False] * _EXAMPLES)
    device = batch.text.device
    transformer.to(device)
    sigma = sample_sigmas(_EXAMPLES, source).to(device)
    noisy = torch.lerp(batch.answer, torch.randn_like(batch.answer), sigma[:, None, None])
    predict(transformer, batch, noisy, sigma, 8 * torch.rand_like(sigma))
    hook.remove()
    transformer.cpu()  # where the heads are made, and where training takes it from
    (named,) = seen
    cells, text = CELLS * CELLS, named["encoder_hidden_states"].cpu()
    return _Seen(
        image=named["hidden_states"].cpu().flatten(0, 1),
        cells=text[:, -cells:],
        others=text[:, :-cells].flatten(0, 1),
        texts=batch.text[:, -cells:].cpu(),
    )


def _in_channels(part: slice) -> torch.Tensor:
    """Give a head's channels with ones in a part."""
    channels = torch.zeros(64)
    channels[part] = 1.0
    return channels


def _shape(amplitudes: Sequence[float]) -> torch.Tensor:
    """Give the head's channels (64) of a query that looks around itself."""
    channels = torch.zeros(64)
    for part in (_HEIGHT, _WIDTH):
        channels[part][::2] = torch.tensor(amplitudes)
    return channels


def _place_keys(amplitudes: Sequence[float]) -> torch.Tensor:
    """Give the keys (cells, 64) that such a query finds at each cell's place."""
    keys = torch.zeros(CELLS * CELLS, 64)
    waves = PLACES // 2
    sizes = torch.tensor(amplitudes).repeat_interleave(2)[:waves]
    for part, place in ((_HEIGHT, slice(waves)), (_WIDTH, slice(waves, PLACES))):
        keys[:, part][:, :waves] = sizes * cell_places()[:, place]
    return keys


def _mix(query: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Give `query` only a share of a head's energy, and the rest to channels that hear nothing."""
    query, other = normalize(query, dim=-1), normalize(other, dim=-1)
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


def _fit_logits(inputs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Fit a matrix (outputs, width) to the logits of `shares`, which are from 0 to 1.

    A text encoder that learned by cross entropy tells a share by its logit, so that a linear fit
    to the share itself hears less of it.
    """
    deviation = inputs.std(dim=0) + 1e-3
    # The last column is a bias: what is constant need not be told.
    x = torch.cat([(inputs - inputs.mean(dim=0)) / deviation, torch.ones(len(inputs), 1)], dim=1)
    with torch.enable_grad():
        weight = torch.zeros(shares.shape[1], x.shape[1], requires_grad=True)
        optimiser = torch.optim.LBFGS([weight], max_iter=80, line_search_fn="strong_wolfe")

        def measure() -> torch.Tensor:
            optimiser.zero_grad()
            logits = x @ weight.T
            loss = binary_cross_entropy_with_logits(logits, shares) + 1e-4 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(measure)  # type: ignore[no-untyped-call]
    return weight.detach()[:, :-1] / deviation


def _main_directions(inputs: torch.Tensor, count: int) -> torch.Tensor:
    """Give the directions (count, width) of most variance."""
    centred = inputs - inputs.mean(dim=0)
    directions: torch.Tensor = torch.linalg.svd(centred, full_matrices=False).Vh
    return directions[:count]
