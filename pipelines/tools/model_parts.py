"""What every small FLUX.2 has in common, whatever its weights: schedule, tokens, and files."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import transformers
from diffusers.pipelines.flux2.system_messages import (
    SYSTEM_MESSAGE,
    SYSTEM_MESSAGE_UPSAMPLING_I2I,
    SYSTEM_MESSAGE_UPSAMPLING_T2I,
)

from pipelines.compat import declare_torchvision_operators

IMAGE_PATCH_PIXELS, IMAGE_PATCH_MERGE = 14, 2
"""The side of a patch that the text encoder sees, and how many of them, squared, are one token."""

SPECIAL_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("<pad>", "[IMG_BREAK]", "[IMG_END]", "[IMG]"),
)
"""Their places are their numbers: <unk> to [/INST], and [IMG], have those that Mistral gives."""

_TOKENIZER_TEXTS = (SYSTEM_MESSAGE, SYSTEM_MESSAGE_UPSAMPLING_T2I, SYSTEM_MESSAGE_UPSAMPLING_I2I)
# A "#" before six hex digits, or one such digit, told by how many stand before and after it.
_HEX_DIGIT = "[0-9A-Fa-f]"
_HEX_CODE_CHARACTER = "|".join(
    [f"#(?={_HEX_DIGIT}{{6}})"]
    + [f"(?<=#{_HEX_DIGIT * n}){_HEX_DIGIT}(?={_HEX_DIGIT}{{{5 - n}}})" for n in range(6)]
)
# Accepts what diffusers' `format_input` makes: content as a list of parts, and a turn of
# images before a turn of text, both from the user.
_CHAT_TEMPLATE = """\
{%- macro render(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for part in content -%}{{ '[IMG]' if part.type == 'image' else part.text }}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- set text = render(message.content) -%}
  {%- if message.role == 'system' -%}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]
  {%- elif message.role == 'user' -%}[INST]{{ text }}[/INST]
  {%- else -%}{{ text }}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""


def build_scheduler() -> Any:
    """FLUX.2 [dev] ships the scheduler settings of FLUX.1 [dev]."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_encoder_config(text_config: Any) -> Any:
    """Describe a text encoder around its language model; the vision tower is as small as can be."""
    return transformers.Mistral3Config(
        text_config=text_config,
        vision_config=transformers.PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=1540,
            patch_size=IMAGE_PATCH_PIXELS,
        ),
        image_token_index=SPECIAL_TOKENS.index("[IMG]"),
        spatial_merge_size=IMAGE_PATCH_MERGE,
        tie_word_embeddings=False,
    )


def build_processor(
    extra_texts: Iterable[str] = (), vocab_size: int = 1024, closing: Sequence[str] = ("[/INST]",)
) -> Any:
    """Make the tokenizer, its chat template, and the image side of the text encoder's input.

    The words of `extra_texts` become short too, as far as `vocab_size` tokens allow, and a hex
    code such as #a1B2c3, in any text, becomes one token for each of its characters: digits that
    are sometimes fused would hide from a small text encoder where a channel begins. With no extra
    texts hex codes are no different from other text.

    A user's turn ends with the tokens of `closing`, the only ones that have read the whole prompt;
    the real template has one [/INST]. Those that have no number yet get the first free ones.
    """
    declare_torchvision_operators()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_train_tokenizer(tuple(extra_texts), vocab_size, closing),
        **roles,
        padding_side="left",
        # A prompt that is too long may lose its first words, but not what has to close it.
        truncation_side="left" if len(closing) > 1 else "right",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            patch_size=IMAGE_PATCH_PIXELS, size={"longest_edge": 1540}
        ),
        tokenizer=tokenizer,
        patch_size=IMAGE_PATCH_PIXELS,
        spatial_merge_size=IMAGE_PATCH_MERGE,
        chat_template=_CHAT_TEMPLATE.replace("[/INST]", "".join(closing)),
    )


def _train_tokenizer(extra_texts: tuple[str, ...], vocab_size: int, closing: Sequence[str]) -> Any:
    """Learn byte pairs from the texts that precede every prompt, so that these stay short.

    Bytes alone would spend 190 of the 512 tokens on the system message.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = _build_pre_tokenizer(apart_hex_codes=bool(extra_texts))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(dict.fromkeys((*SPECIAL_TOKENS, *closing))),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*_TOKENIZER_TEXTS, *extra_texts), trainer)
    return tokenizer


def _build_pre_tokenizer(*, apart_hex_codes: bool) -> Any:
    bytes_of_words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not apart_hex_codes:
        return bytes_of_words
    # Pairs are only ever joined within what a pre-tokenizer has left in one piece.
    apart = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_HEX_CODE_CHARACTER), "isolated")
    return tokenizers.pre_tokenizers.Sequence([apart, bytes_of_words])


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`, which takes its place if the block ends well.

    So `folder` appears whole or not at all. Raises `OSError` if it is there and not empty.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        # An inner folder, because the outer one is readable by its owner only.
        unfinished = Path(scratch) / folder.name
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(folder)


def open_to_all_readers(folder: Path) -> None:
    """Give the weights in a model folder the mode of its other files.

    safetensors keeps its files from other users; a server may well run as one.
    """
    mode = (folder / "model_index.json").stat().st_mode
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(mode)
