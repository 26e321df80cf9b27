"""What the text encoder does beside reading prompts, where all of it is loaded: write and judge."""

from dataclasses import dataclass
from functools import partial

import structlog
import torch
from diffusers import Flux2Pipeline

from pipelines.errors import LanguageError, PromptRefusedError
from pipelines.expansion import Expands, Unavailable, make_expander
from pipelines.mistral import Mistral, load_mistral
from pipelines.plan import Layout
from pipelines.screening import PromptCheck, second_look
from pipelines.types import GenerationRequest, IsCancelled, LoadOptions
from pipelines.verdicts import SecondLook

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Expands prompts, judges them, and looks at images again, as far as it can."""

    expander: Expands
    prompt_check: PromptCheck | None = None
    second_look: SecondLook | None = None

    def choose_prompt(self, request: GenerationRequest, is_cancelled: IsCancelled) -> str:
        """Return what the images are made from: the prompt, expanded where that is asked for.

        Both are judged: what is hidden in one order may come out in the other. Raises
        `PromptRefusedError`, `CancelledError`, and what the language model raises.
        """
        self._screen(request.prompt, is_cancelled)
        if not request.settings.expand_prompt:
            return request.prompt
        prompt = self.expander.expand(
            request.prompt,
            request.reference_images,
            seed=request.seed,
            request_id=request.request_id,
            is_cancelled=is_cancelled,
        ).prompt
        if prompt != request.prompt:
            self._screen(prompt, is_cancelled)
        return prompt

    def _screen(self, prompt: str, is_cancelled: IsCancelled) -> None:
        criterion = self.prompt_check.find(prompt, is_cancelled) if self.prompt_check else None
        if criterion is not None:
            raise PromptRefusedError(criterion)


NO_LANGUAGE = Language(expander=Unavailable("the pipeline was made without a language model"))


def make_language(
    options: LoadOptions,
    pipe: Flux2Pipeline,
    device: torch.device,
    layout: Layout,
    *,
    compiled: bool,
) -> Language:
    """Make of a loaded text encoder what it can be.

    Raises `LanguageError` where there are criteria for prompts and nobody to judge by them.
    """
    is_streamed = layout.text_encoder == "streamed"
    # Streamed layers come and go, which is nothing for a compiled graph.
    mistral, why_none = _load(options, pipe, device, compiled=compiled and not is_streamed)
    if options.prompt_criteria and mistral is None:
        raise LanguageError(f"there are criteria for prompts, but no language model: {why_none}")
    return Language(
        expander=make_expander(mistral, why_none, max_new_tokens=options.expansion_tokens),
        prompt_check=PromptCheck(mistral, options.prompt_criteria)
        if mistral and options.prompt_criteria
        else None,
        # It is asked by another thread, and streamed layers serve one alone.
        second_look=partial(second_look, mistral) if mistral and not is_streamed else None,
    )


def _load(
    options: LoadOptions, pipe: Flux2Pipeline, device: torch.device, *, compiled: bool
) -> tuple[Mistral | None, str]:
    mistral, why_none = load_mistral(options.model, pipe, device, compiled=compiled)
    if mistral is None or not compiled:
        return mistral, why_none
    try:
        mistral.warm_up()
    except Exception:
        log.exception("the text encoder cannot be compiled")
        return load_mistral(options.model, pipe, device, compiled=False)
    return mistral, why_none
