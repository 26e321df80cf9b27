"""In what the FLUX.2 models differ: how prompts are read, and where guidance comes from.

[dev] reads prompts with Mistral 3 and has learned to be guided in one pass. klein reads them with
Qwen3; its distilled models know no guidance, its base models are guided by a second pass that
follows a negative prompt. All else is the same, and asks no questions about the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor

from pipelines.folder import Architecture, Kind
from pipelines.model_size import KLEIN_READ_LAYERS, READ_LAYERS
from pipelines.plan import TEXT_TOKENS
from pipelines.types import GenerationSettings

Tokenize = Callable[[Any, str], Mapping[str, Tensor]]
"""From a pipeline's tokenizer and a prompt to `input_ids` and `attention_mask`, (1, 512) each."""


class Guidance(Enum):
    """How a model is led to a prompt."""

    EMBEDDED = auto()
    """In the one pass, told how strongly."""
    TRUE = auto()
    """By a second pass with a negative prompt, away from which the step leads."""
    NONE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one kind of FLUX.2 does its own way.

    `pipeline` and `encoder` are diffusers' and transformers' classes. Of the encoder prompts need
    the model at `language`, up to the last of `read_layers`, and none of the parts in `unread`.
    A model that `can_write` expands prompts and judges; `has_flash` is whether there is an
    eight-step LoRA for it.
    """

    pipeline: Any
    encoder: Any
    language: str
    read_layers: tuple[int, ...]
    unread: tuple[str, ...]
    tokenize: Tokenize
    guidance: Guidance
    can_write: bool
    has_flash: bool

    def guidance_scale(self, settings: GenerationSettings) -> float:
        """Return how strongly images are really guided: 1 is not at all."""
        if self.guidance is Guidance.EMBEDDED:
            return settings.guidance_scale
        return max(1.0, settings.guidance_scale) if self.guidance is Guidance.TRUE else 1.0

    def negative_prompt(self, settings: GenerationSettings) -> str | None:
        """Return what a second pass of every step leads away from; None is one pass alone."""
        is_led_away = self.guidance is Guidance.TRUE and self.guidance_scale(settings) > 1
        return settings.negative_prompt if is_led_away else None


def recipe_of(kind: Kind) -> Recipe:
    """Return how a model of this kind is run."""
    if kind.architecture is Architecture.DEV:
        return DEV
    return KLEIN if kind.is_distilled else KLEIN_BASE


def kind_of(pipe: Any) -> Kind:
    """Tell what kind of model one of diffusers' pipelines has."""
    architecture = Architecture(type(pipe).__name__)
    return Kind(architecture, architecture is Architecture.DEV or bool(pipe.config.is_distilled))


def _tokenize_for_mistral(pipe: Any, prompt: str) -> Mapping[str, Tensor]:
    tokens: Mapping[str, Tensor] = pipe.tokenizer.apply_chat_template(
        format_input(prompts=[prompt], system_message=pipe.system_message),
        add_generation_prompt=False,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=TEXT_TOKENS,
    )
    return tokens


def _tokenize_for_qwen(pipe: Any, prompt: str) -> Mapping[str, Tensor]:
    text = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    tokens: Mapping[str, Tensor] = pipe.tokenizer(
        text, return_tensors="pt", padding="max_length", truncation=True, max_length=TEXT_TOKENS
    )
    return tokens


DEV = Recipe(
    pipeline=diffusers.Flux2Pipeline,
    encoder=transformers.Mistral3ForConditionalGeneration,
    language="model.language_model",
    read_layers=READ_LAYERS,
    unread=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
    tokenize=_tokenize_for_mistral,
    guidance=Guidance.EMBEDDED,
    can_write=True,
    has_flash=True,
)


def _klein(guidance: Guidance) -> Recipe:
    return Recipe(
        pipeline=diffusers.Flux2KleinPipeline,
        encoder=transformers.Qwen3ForCausalLM,
        language="model",
        read_layers=KLEIN_READ_LAYERS,
        unread=("lm_head",),
        tokenize=_tokenize_for_qwen,
        guidance=guidance,
        can_write=False,
        has_flash=False,
    )


KLEIN, KLEIN_BASE = _klein(Guidance.NONE), _klein(Guidance.TRUE)
