"""Trains the text encoder: a Mistral-3 that reads a prompt and knows what it means.

FLUX.2 takes hidden states 10, 20 and 30 of its text encoder as they are. Here the tokens that close
a prompt learn to hold, in each of them, all that a `Meaning` says, linearly and at a size of order
one; the tokens before them learn what that needs. Next to it the model learns to predict its own
prompts' next tokens, so that it can also write.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from pipelines.tools.model_parts import SPECIAL_TOKENS, build_encoder_config
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

TEXT_WIDTH = 96
TEXT_LAYERS = 32  # the pipeline reads 10, 20 and 30: none may be the last
READ_LAYERS = (10, 20, 30)
CLOSING_TOKENS = 16
"""How often [/INST] ends a prompt. The transformer begins by attending to all tokens alike, and one
among a hundred would hardly be heard."""

_WORKING_LAYERS = (0, 1, 2, 10, 11, 12, 20, 21, 22)
_PASSING_SIZE = 1e-3  # what the other layers add, beside about 1 that is there
_BATCH = 64
_LANGUAGE_WEIGHT = 0.1


def build_text_config(vocab_size: int, layers: int) -> Any:
    """Describe the language model; `layers` is `TEXT_LAYERS` but while it is trained."""
    return transformers.MistralConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
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
        config = build_text_config(vocab_size, len(_WORKING_LAYERS))
        # Plain attention: its backward pass is faster than the fused one's at these sizes.
        config._attn_implementation = "eager"  # noqa: SLF001
        self.language = transformers.MistralForCausalLM(config)

        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(TEXT_WIDTH, READING_WIDTH) for _ in READ_LAYERS
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
        """Read (B, L) tokens; gives the logits, and by layer the read-outs (B, closing, fields)."""
        output = self.language(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = [output.hidden_states[_count_before(layer)] for layer in READ_LAYERS]
        readings = [
            head(state[:, -CLOSING_TOKENS:]) for head, state in zip(self.heads, states, strict=True)
        ]
        return readings, output.logits


def train_text_encoder(
    folder: Path, processor: Any, device: torch.device, *, steps: int, seed: int = 0
) -> Any:
    """Train, and return the whole `Mistral3ForConditionalGeneration`."""
    torch.manual_seed(seed)
    vocab_size = len(processor.tokenizer)
    reader = Reader(vocab_size).to(device)
    loop = Loop(folder, reader, steps=steps, peak_rate=3e-3, average=0.995, seed=seed)
    cast = autocast(device)
    for step in loop:
        source = random.Random(loop.seed_of(step))
        pairs = [sample_prompt(source) for _ in range(_BATCH)]
        ids, mask = tokenize(processor, [prompt for prompt, _ in pairs])
        with cast():
            readings, logits = reader(ids.to(device), mask.to(device))
        readings, logits = [reading.float() for reading in readings], logits.float()
        targets = encode_meanings([meaning for _, meaning in pairs]).to(device)
        every = targets.repeat_interleave(CLOSING_TOKENS, dim=0)
        losses = [meaning_loss(reading.flatten(0, 1), every) for reading in readings]
        language = _language_loss(logits, ids.to(device))
        loss = 0.2 * losses[0] + 0.4 * losses[1] + losses[2] + _LANGUAGE_WEIGHT * language
        wrong = float((~read_correctly(readings[2][:, -1].detach(), targets)).float().mean())
        figures = {"first": losses[0], "last": losses[2], "language": language}
        loop.update(
            loss, wrong=wrong, **{name: float(value.detach()) for name, value in figures.items()}
        )
    return _spread(loop.averaged(), vocab_size, seed)


def _language_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Next-token cross entropy over what follows the system message: the prompt."""
    begins = ids == SPECIAL_TOKENS.index("[INST]")
    in_prompt = begins.cumsum(dim=1).bool()[:, :-1]
    return cross_entropy(logits[:, :-1][in_prompt], ids[:, 1:][in_prompt])


def _count_before(layer: int) -> int:
    """How many working layers lie before hidden state `layer` of the whole encoder."""
    return sum(working < layer for working in _WORKING_LAYERS)


@torch.no_grad()
def _spread(reader: Reader, vocab_size: int, seed: int) -> Any:
    """Put the trained layers at their places in a whole encoder; the others pass on what comes.

    What they add is small but not nothing, so that whoever quantises or offloads the encoder
    finds ordinary weights.
    """
    torch.manual_seed(seed)
    text_config = build_text_config(vocab_size, TEXT_LAYERS)
    whole = transformers.Mistral3ForConditionalGeneration(build_encoder_config(text_config))
    language = whole.model.language_model
    trained = reader.language.cpu()
    for layer in language.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.normal_(0.0, _PASSING_SIZE * projection.in_features**-0.5)
    for place, layer in zip(_WORKING_LAYERS, trained.model.layers, strict=True):
        language.layers[place].load_state_dict(layer.state_dict())
    language.embed_tokens.load_state_dict(trained.model.embed_tokens.state_dict())
    language.norm.load_state_dict(trained.model.norm.state_dict())
    whole.lm_head.load_state_dict(trained.lm_head.state_dict())
    return whole.eval()
