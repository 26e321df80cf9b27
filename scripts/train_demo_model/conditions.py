"""Makes training batches: prompts, references and answers, encoded as the pipeline encodes them.

Shapes: B examples, S answer tokens, R reference tokens, K text rows, 128 latent channels.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import Flux2Pipeline

from scripts.train_demo_model.examples import Example, realise
from scripts.train_demo_model.loop import autocast
from scripts.train_demo_model.meaning import EDITS, Meaning
from scripts.train_demo_model.text_encoder import READ_LAYERS, sample_prompt, tokenize
from scripts.train_demo_model.vae import to_pixels
from scripts.train_demo_model.world import Scene, draw, draw_mask

TEXT_ROWS = 512
"""The pipeline pads every prompt to this, on the left."""

TOKEN_PIXELS = 16
_ONE_REFERENCE = tuple(action for action in EDITS if action != "combine")
_FIRST_PROMPTS, _PROMPTS, _PROMPTS_AT_ONCE, _NEW_PROMPTS_SHARE = 32, 2048, 8, 0.15
_FIRST_EXAMPLES, _NEW_EXAMPLES_SHARE = 32, 0.15
_THING_WEIGHT = 3.0  # how much more a token counts that a thing touches: most show only ground


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example: text (rows, width), answer and references as grids (128, h, w), weights (S)."""

    text: torch.Tensor
    answer: torch.Tensor
    references: tuple[torch.Tensor, ...]
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees; ids are positions on the axes T, H, W, L."""

    text: torch.Tensor  # (B, K, width)
    text_ids: torch.Tensor  # (1, K, 4)
    answer: torch.Tensor  # (B, S, 128)
    answer_ids: torch.Tensor  # (1, S, 4)
    references: torch.Tensor | None  # (B, R, 128)
    reference_ids: torch.Tensor | None  # (1, R, 4)
    weights: torch.Tensor  # (B, S), one on average


class Encoder:
    """The frozen parts of the model, and what they make of examples."""

    def __init__(self, text_encoder: Any, processor: Any, vae: Any, device: torch.device) -> None:
        self._language = text_encoder.model.language_model.to(device).eval()
        self._processor = processor
        self._vae = vae.to(device).eval()
        self._device = device
        self._cast = autocast(device)
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
        self._mean, self._deviation = mean.to(device), deviation.to(device)
        self.nothing = self.encode_prompts([""])[0]
        """The empty prompt, which guidance leads away from."""
        self.padding = self._encode_padding()
        """What every row before a prompt's first token holds."""

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Encode prompts, each as (its tokens, 3 * width), without padding."""
        ids, mask = tokenize(self._processor, prompts)
        rows = self._run(ids, mask)
        lengths = mask.sum(dim=1).tolist()
        return [row[-length:] for row, length in zip(rows, lengths, strict=True)]

    @torch.no_grad()
    def encode_scenes(self, scenes: Sequence[Scene], width: int, height: int) -> torch.Tensor:
        """Draw scenes and encode them as normalised patches (B, 128, height/16, width/16)."""
        pixels = to_pixels([draw(scene, width, height) for scene in scenes]).to(self._device)
        with self._cast():
            latents = self._vae.encode(pixels).latent_dist.mode()
        patches = Flux2Pipeline._patchify_latents(latents.float())  # noqa: SLF001
        normalised: torch.Tensor = (patches - self._mean) / self._deviation
        return normalised

    def _run(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output: Any = self._language(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            output_hidden_states=True,
            use_cache=False,
        )
        states: list[torch.Tensor] = [output.hidden_states[layer] for layer in READ_LAYERS]
        return torch.cat(states, dim=-1)

    @torch.no_grad()
    def _encode_padding(self) -> torch.Tensor:
        """Read what padding becomes: one row, the same wherever it stands."""
        ids, mask = tokenize(self._processor, [""])
        pads = torch.full((1, 8), self._processor.tokenizer.pad_token_id)
        rows = self._run(
            torch.cat([pads, ids], dim=1), torch.cat([torch.zeros_like(pads), mask], dim=1)
        )
        return rows[0, 4]


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: torch.Tensor  # (its tokens, width)
    meaning: Meaning


class Pool:
    """Keeps encoded examples of each kind, so that each is seen a few times with other noise.

    A kind is a picture size and a number of references.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = 1536) -> None:
        self._encoder = encoder
        self._capacity = capacity
        self._kept: dict[tuple[int, int, int], deque[Encoded]] = {}
        self._prompts: dict[int, deque[_Prompt]] = {}

    def draw(
        self, source: random.Random, width: int, height: int, references: int, count: int
    ) -> list[Encoded]:
        """Draw `count` examples, some of them new: encoding one costs more than a step with it."""
        kept = self._kept.setdefault((width, height, references), deque(maxlen=self._capacity))
        fresh = source.random() * 2 * _NEW_EXAMPLES_SHARE * count
        new = count if len(kept) < _FIRST_EXAMPLES else round(fresh)
        if new:
            kept.extend(self._make(source, width, height, references, new))
        return source.sample(kept, count)

    def _make(
        self, source: random.Random, width: int, height: int, references: int, count: int
    ) -> list[Encoded]:
        prompts = self._draw_prompts(source, references, count)
        examples = [realise(prompt.meaning, width / height, source) for prompt in prompts]
        scenes = [scene for example in examples for scene in (example.target, *example.references)]
        grids = self._encoder.encode_scenes(scenes, width, height)
        groups = torch.split(grids, 1 + references)
        return [
            Encoded(prompt.text, grid[0], tuple(grid[1:]), _weigh(example, width, height))
            for prompt, grid, example in zip(prompts, groups, examples, strict=True)
        ]

    def _draw_prompts(self, source: random.Random, references: int, count: int) -> list["_Prompt"]:
        """Draw prompts, now and then new ones: encoding one costs more than drawing its scene."""
        kept = self._prompts.setdefault(references, deque(maxlen=_PROMPTS))
        more = len(kept) < _FIRST_PROMPTS or source.random() < _NEW_PROMPTS_SHARE
        while more or len(kept) < count:
            more = False
            sampled = [_sample_prompt(source, references) for _ in range(_PROMPTS_AT_ONCE)]
            texts = self._encoder.encode_prompts([prompt for prompt, _ in sampled])
            kept.extend(
                _Prompt(text, meaning) for text, (_, meaning) in zip(texts, sampled, strict=True)
            )
        return source.sample(kept, count)


def make_batch(
    examples: Sequence[Encoded],
    encoder: Encoder,
    rows: int,
    *,
    without_text: Sequence[bool],
    places: torch.Tensor | None = None,
) -> Batch:
    """Stack examples of one kind; prompts get padding up to `rows` or the longest, if that is more.

    Where `without_text` says so, the empty prompt takes the prompt's place. With `places`, numbers
    of tokens, only these take part, of the answer and of each reference.
    """
    texts = [
        encoder.nothing if empty else example.text
        for example, empty in zip(examples, without_text, strict=True)
    ]
    text = pad_texts(texts, encoder.padding, rows)
    answer = torch.stack([example.answer for example in examples])
    tokens = answer.shape[2] * answer.shape[3]
    kept = torch.arange(tokens) if places is None else places
    references, reference_ids = None, None
    if examples[0].references:
        grids = [[grid[None] for grid in example.references] for example in examples]
        references = torch.stack(
            [torch.cat([_pack(grid)[0, kept] for grid in row]) for row in grids]
        )
        ids = Flux2Pipeline._prepare_image_ids(grids[0])  # noqa: SLF001
        kept_of_each = [image * tokens + kept for image in range(len(grids[0]))]
        reference_ids = ids[:, torch.cat(kept_of_each)].to(text.device)
    answer_ids = Flux2Pipeline._prepare_latent_ids(answer[:1])  # noqa: SLF001
    weights = torch.stack([example.weights[kept] for example in examples])
    return Batch(
        text=text,
        text_ids=text_ids(text.shape[1]).to(text.device),
        answer=_pack(answer)[:, kept],
        answer_ids=answer_ids[:, kept].to(text.device),
        references=references,
        reference_ids=reference_ids,
        weights=weights.to(text.device),
    )


def choose_places(source: random.Random, width: int, height: int, thin: int) -> torch.Tensor:
    """Choose one token of each square of `thin` by `thin` in a picture of so many pixels.

    A picture's layout shows in a sixteenth of its tokens, at a fraction of the cost (as in
    https://arxiv.org/abs/2407.15811, which drops patches too).
    """
    columns, rows = width // TOKEN_PIXELS, height // TOKEN_PIXELS
    return torch.tensor(
        [
            (row + source.randrange(thin)) * columns + column + source.randrange(thin)
            for row in range(0, rows - thin + 1, thin)
            for column in range(0, columns - thin + 1, thin)
        ]
    )


def pad_texts(texts: Sequence[torch.Tensor], padding: torch.Tensor, rows: int) -> torch.Tensor:
    """Pad texts on the left to `rows`, or to the longest: (B, K, width)."""
    rows = max(rows, *(len(text) for text in texts))
    return torch.stack([torch.cat([padding.expand(rows - len(text), -1), text]) for text in texts])


def text_ids(rows: int) -> torch.Tensor:
    """Positions of the last `rows` of the 512 text rows (1, rows, 4)."""
    ids = torch.zeros(1, rows, 4, dtype=torch.long)
    ids[0, :, 3] = torch.arange(TEXT_ROWS - rows, TEXT_ROWS)
    return ids


def _pack(grid: torch.Tensor) -> torch.Tensor:
    """Turn (B, C, h, w) into tokens (B, h * w, C)."""
    return grid.flatten(2).transpose(1, 2)


def _sample_prompt(source: random.Random, references: int) -> tuple[str, Meaning]:
    action = {0: "draw", 1: source.choice(_ONE_REFERENCE), 2: "combine"}[references]
    return sample_prompt(source, action)


def _weigh(example: Example, width: int, height: int) -> torch.Tensor:
    """Weigh the answer's tokens (S): more where a thing is, or was in the first reference."""
    columns, rows = width // TOKEN_PIXELS, height // TOKEN_PIXELS
    scenes = (example.target, *example.references[:1])
    touched = torch.zeros(rows, columns)
    for thing in {thing for scene in scenes for thing in scene.things}:
        mask = draw_mask(thing, 4 * columns, 4 * rows).reduce(4)
        touched = torch.maximum(touched, torch.from_numpy(np.asarray(mask) > 0).float())
    weights = 1 + (_THING_WEIGHT - 1) * touched.flatten()
    return weights / weights.mean()
