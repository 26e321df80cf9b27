"""Trains the text encoder: a Mistral-3 that reads a prompt and knows what it means.

FLUX.2 takes hidden states 10, 20 and 30 of its text encoder as they are. Here the tokens that close
a prompt learn to hold, in each of them, all that a `Meaning` says, linearly and at a size of order
one, and the last of them a sketch of the picture: each where its own cell is, and what is near it.
The tokens before them learn what that needs. Next to it the model learns to predict its own
prompts' next tokens, so that it can also write.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from pipelines.tools.model_parts import SPECIAL_TOKENS, build_encoder_config
from scripts.train_demo_model.cells import CELL_WIDTH, CELLS, cells_loss, cut_cells
from scripts.train_demo_model.examples import sketch
from scripts.train_demo_model.heldout import is_held_out
from scripts.train_demo_model.loop import Loop, autocast
from scripts.train_demo_model.meaning import Meaning, sample_meaning
from scripts.train_demo_model.reading import (
    READING_WIDTH,
    encode_meanings,
    meaning_loss,
    read_correctly,
)
from scripts.train_demo_model.wording import say

_READER_WIDTH = 96
TEXT_LAYERS = 32  # the pipeline reads 10, 20 and 30: none may be the last
READ_LAYERS = (10, 20, 30)
_ENDS = 16  # how often [/INST] ends a prompt: one among a hundred tokens would hardly be heard
_PLACE_WAVES = 4
PLACES = 4 * _PLACE_WAVES
"""The last channels of every hidden state: where a cell is, as `cell_places` says it."""

TEXT_WIDTH = _READER_WIDTH + PLACES
PLACE_SIZE = 0.1  # small beside the rest, so that norms hardly notice

CLOSING = (
    *(_ENDS * ("[/INST]",)),
    *(f"[CELL_{row}_{column}]" for row in range(CELLS) for column in range(CELLS)),
)
"""The tokens that end a prompt: some that hold what it means, and one for each cell of a sketch.

A transformer this small does not find out in hours where on a picture a thing goes; told cell by
cell, it sees that in minutes.
"""

_PICTURE_TOKENS = 32  # along a side of 512 pixels, the size for which a sketch is made
_ROTARY_FREQUENCIES = 2000.0 ** (-torch.arange(8) / 8)  # of Flux2Transformer2DModel, per token

_WORKING_LAYERS = (0, 1, 2, 10, 11, 12, 20, 21, 22, 23, 24, 25)
_PASSING_SIZE = 1e-3  # what the other layers add, beside about 1 that is there
_BATCH = 32
_SAMPLED_CELLS = 64  # in most training steps: what one cell says needs no other
_WHOLE_SHARE = 0.1  # of the steps see all cells, as use does
_LANGUAGE_WEIGHT = 0.1
_SKETCH_WEIGHTS = (0.5, 3.0, 12.0)
"""For each state read. The transformer is told the last sketch; the others lead to it."""

_WAVES_ALONG = 6
_WAVE_PAIRS = tuple(
    (i, j) for i in range(_WAVES_ALONG) for j in range(_WAVES_ALONG - i) if i + j > 0
)
_FIRST_WAVES = 0.1  # their size in the embeddings, beside torch's 0.02


def build_text_config(vocab_size: int, layers: int = TEXT_LAYERS, width: int = TEXT_WIDTH) -> Any:
    """Describe the language model; `layers` and `width` are fewer only while it is trained."""
    return transformers.MistralConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
    )


def sample_texts(count: int, seed: int) -> list[str]:
    """Draw prompts for the tokenizer to learn words from."""
    source = random.Random(seed)
    return [say(sample_meaning(source), source) for _ in range(count)]


def sample_prompt(source: random.Random, action: str | None = None) -> tuple[str, Meaning]:
    """Draw a prompt that is not held out, and what it means; of one action if that is given."""
    while True:
        meaning = sample_meaning(source, action)
        prompt = say(meaning, source)
        if not is_held_out(prompt):
            return prompt, meaning


def tokenize(processor: Any, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize as `Flux2Pipeline` does, padded on the left to the longest only.

    Returns ids and mask, both (B, longest).
    """
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input  # noqa: PLC0415
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE  # noqa: PLC0415

    messages = format_input(prompts=list(prompts), system_message=SYSTEM_MESSAGE)
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=False,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    return inputs["input_ids"], inputs["attention_mask"]


class Reader(torch.nn.Module):
    """The working layers alone, with a linear read-out of the meaning at each read layer."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        config = build_text_config(vocab_size, len(_WORKING_LAYERS), _READER_WIDTH)
        # Plain attention: its backward pass is faster than the fused one's at these sizes.
        config._attn_implementation = "eager"  # noqa: SLF001
        self.language = transformers.MistralForCausalLM(config)

        _tell_cells_apart(self.language.get_input_embeddings().weight)
        self.meaning_heads = torch.nn.ModuleList(
            torch.nn.Linear(_READER_WIDTH, READING_WIDTH) for _ in READ_LAYERS
        )
        self.sketch_heads = torch.nn.ModuleList(
            torch.nn.Linear(_READER_WIDTH, CELL_WIDTH) for _ in READ_LAYERS
        )

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cells: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Read (B, L) tokens, of the cells' only those numbered `cells`, in order.

        Gives by layer what the prompts mean (B, ends, fields) and show (B, cells, a cell's
        content), and the logits of all tokens before the closing ones.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        first = ids.shape[1] - CELLS * CELLS
        kept = torch.cat([places[:first], first + cells.to(ids.device)])
        ids = ids[:, kept]
        output = self.language.model(
            input_ids=ids,
            attention_mask=mask[:, kept],
            position_ids=kept[None],
            output_hidden_states=True,
        )
        states = [output.hidden_states[_count_before(layer)] for layer in READ_LAYERS]
        meanings = [
            head(state[:, first - _ENDS : first])
            for head, state in zip(self.meaning_heads, states, strict=True)
        ]
        sketches = [
            head(state[:, first:]) for head, state in zip(self.sketch_heads, states, strict=True)
        ]
        logits = self.language.lm_head(output.last_hidden_state[:, : first - _ENDS])
        return meanings, sketches, logits


def train_text_encoder(
    folder: Path, processor: Any, device: torch.device, *, steps: int, seed: int = 0
) -> Any:
    """Train, and return the whole `Mistral3ForConditionalGeneration`."""
    torch.manual_seed(seed)
    vocab_size = len(processor.tokenizer)
    reader = Reader(vocab_size).to(device)
    layers = reader.language.model.layers
    hidden = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
    loop = Loop(
        folder, reader, steps=steps, peak_rate=3e-3, average=0.995, seed=seed, hidden=hidden
    )
    cast = autocast(device)
    for step in loop:
        source = random.Random(loop.seed_of(step))
        pairs = [sample_prompt(source) for _ in range(_BATCH)]
        ids, mask = tokenize(processor, [prompt for prompt, _ in pairs])
        cells = _choose_cells(source)
        with cast():
            readings, drawn, logits = reader(ids.to(device), mask.to(device), cells)
        targets = encode_meanings([meaning for _, meaning in pairs]).to(device)
        every = targets.repeat_interleave(_ENDS, dim=0)
        meanings = [meaning_loss(reading.float().flatten(0, 1), every) for reading in readings]
        shown = cut_cells([sketch(meaning, source) for _, meaning in pairs])
        shown = shown[:, cells].to(device)
        sketches = [cells_loss(said.float(), shown) for said in drawn]
        language = _language_loss(logits.float(), ids.to(device))
        loss = 0.2 * meanings[0] + 0.4 * meanings[1] + meanings[2] + _LANGUAGE_WEIGHT * language
        loss = loss + sum(w * one for w, one in zip(_SKETCH_WEIGHTS, sketches, strict=True))
        wrong = float((~read_correctly(readings[2][:, -1].float(), targets)).float().mean())
        figures = {
            "first": meanings[0],
            "last": meanings[2],
            "sketch_first": sketches[0],
            "sketch": sketches[2],
            "language": language,
        }
        loop.update(
            loss, wrong=wrong, **{name: float(value.detach()) for name, value in figures.items()}
        )
    return _spread(loop.averaged(), vocab_size, seed)


def _choose_cells(source: random.Random) -> torch.Tensor:
    """Choose the cells that take part in a step, in order."""
    count = CELLS * CELLS if source.random() < _WHOLE_SHARE else _SAMPLED_CELLS
    return torch.tensor(sorted(source.sample(range(CELLS * CELLS), count)))


def cell_places() -> torch.Tensor:
    """Say where each cell is (cells, `PLACES`): what rotary embeddings make of its middle.

    Cosine and sine of the transformer's highest frequencies, of the row and then of the column,
    counted in tokens of a picture of 512 pixels.
    """
    middles = (torch.arange(CELLS) + 0.5) * _PICTURE_TOKENS / CELLS - 0.5
    angles = middles[:, None] * _ROTARY_FREQUENCIES[:_PLACE_WAVES]
    along = torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)
    rows = along[:, None].expand(-1, CELLS, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)


def _cell_waves() -> torch.Tensor:
    """Say where each cell is (cells, waves), by the lowest waves of a cosine transform.

    Waves along the rows times waves along the columns, each of mean square 1.
    """
    places = (torch.arange(CELLS) + 0.5) * math.pi / CELLS
    waves = torch.cos(places[:, None] * torch.arange(_WAVES_ALONG))
    products = [torch.outer(waves[:, i], waves[:, j]).flatten() for i, j in _WAVE_PAIRS]
    stacked = torch.stack(products, dim=1)
    return stacked / stacked.square().mean(dim=0).sqrt()


@torch.no_grad()
def _tell_cells_apart(embeddings: torch.Tensor) -> None:
    """Begin with embeddings (vocabulary, width) of cells that say where the cell is."""
    waves = _cell_waves()
    first = len(SPECIAL_TOKENS)
    embeddings[first : first + len(waves), : waves.shape[1]] += _FIRST_WAVES * waves


def _language_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Next-token cross entropy over what follows the system message: the prompt."""
    begins = ids == SPECIAL_TOKENS.index("[INST]")
    in_prompt = begins.cumsum(dim=1).bool()[:, : logits.shape[1]]
    return cross_entropy(logits[in_prompt], ids[:, 1 : logits.shape[1] + 1][in_prompt])


def _count_before(layer: int) -> int:
    """How many working layers lie before hidden state `layer` of the whole encoder."""
    return sum(working < layer for working in _WORKING_LAYERS)


@torch.no_grad()
def _spread(reader: Reader, vocab_size: int, seed: int) -> Any:
    """Put the trained layers at their places in a whole encoder; the others pass on what comes.

    What they add is small but not nothing, so that whoever quantises or offloads the encoder
    finds ordinary weights. The channels of `PLACES`, which the reader lacks, are written by no
    layer: what the embeddings of the cells' tokens say there stands in every hidden state.
    """
    torch.manual_seed(seed)
    text_config = build_text_config(vocab_size)
    whole = transformers.Mistral3ForConditionalGeneration(build_encoder_config(text_config))
    language = whole.model.language_model
    trained = reader.language.cpu()
    for layer in language.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.normal_(0.0, _PASSING_SIZE * projection.in_features**-0.5)
            projection.weight[_READER_WIDTH:] = 0
    for place, layer in zip(_WORKING_LAYERS, trained.model.layers, strict=True):
        _widen(layer, language.layers[place])
    _widen(trained.model.norm, language.norm)
    _widen(trained.lm_head, whole.lm_head)
    language.embed_tokens.weight[:, _READER_WIDTH:] = 0
    language.embed_tokens.weight[:, :_READER_WIDTH] = trained.model.embed_tokens.weight
    first = len(SPECIAL_TOKENS)
    places = language.embed_tokens.weight[first : first + CELLS * CELLS, _READER_WIDTH:]
    places.copy_(PLACE_SIZE * cell_places())
    return whole.eval()


def _widen(trained: torch.nn.Module, wide: torch.nn.Module) -> None:
    """Copy weights into a module with more channels, which it is made not to read nor to write."""
    sources = dict(trained.named_parameters())
    for name, target in wide.named_parameters():
        source = sources[name]
        target.zero_()
        target[tuple(slice(size) for size in source.shape)] = source
        if source.ndim == 1:  # a norm, whose mean is now over more channels that are near zero
            target.mul_((_READER_WIDTH / TEXT_WIDTH) ** 0.5)
