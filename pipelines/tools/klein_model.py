"""A very small FLUX.2 [klein] with random weights: what it has otherwise than the tiny [dev].

As in the real one a Qwen3 reads prompts, by its chat template without thinking, and the transformer
embeds no guidance. Each byte is a token: every prompt is longer than with the real vocabulary.
"""

from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from pipelines.tools.model_parts import build_scheduler
from pipelines.tools.tiny_parts import TEXT_WIDTH, build_transformer, build_vae, randomise

_PADDING, _TURN_END = "<|endoftext|>", "<|im_end|>"
_ADDED_TOKENS = (_PADDING, "<|im_start|>", _TURN_END, "<think>", "</think>")
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""


def write_klein(
    folder: Path, random: torch.Generator, *, is_distilled: bool, is_tied: bool
) -> None:
    """Write the pipeline's own files; `is_tied` is as in klein 4B, whose LM head is its embedding.

    Distilled or not, the same weights are drawn: only the index says which it is.
    """
    transformer = build_transformer(random, guidance_embeds=False)
    tokenizer = _build_tokenizer()
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=build_scheduler(),
        vae=build_vae(random),
        text_encoder=_build_text_encoder(tokenizer, random, is_tied=is_tied),
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=is_distilled,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _build_tokenizer() -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = (*alphabet, *_ADDED_TOKENS)
    return transformers.Qwen2TokenizerFast(
        vocab={name: number for number, name in enumerate(names)},
        merges=[],
        unk_token=None,
        eos_token=_TURN_END,
        pad_token=_PADDING,
        additional_special_tokens=list(_ADDED_TOKENS),
        chat_template=_CHAT_TEMPLATE,
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )


def _build_text_encoder(tokenizer: Any, random: torch.Generator, *, is_tied: bool) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=29,  # the pipeline reads 9, 18 and 27: none may be the last
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        tie_word_embeddings=is_tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = transformers.Qwen3ForCausalLM(config)
    randomise(text_encoder, random, {})
    return text_encoder
