"""FLUX.2's text encoder as the language model that it is: it writes text and says yes or no.

Reading prompts needs thirty layers (`conditioning`); this needs all of them, the LM head and, for
pictures, the vision tower. Nothing is shared between two calls: a text depends on the instruction,
the words, the pictures and the seed alone, and the random numbers are its own.

Shapes: B is always 1, T tokens of input, V tokens of the vocabulary.
"""

import copy
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from diffusers import Flux2Pipeline
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, StaticCache

from pipelines.declaration import read_declaration
from pipelines.device_errors import on_device
from pipelines.errors import CancelledError, LanguageError
from pipelines.instructions import MAX_NEW_TOKENS
from pipelines.types import IsCancelled

log = structlog.get_logger(__name__)

MAX_INPUT_TOKENS = 2048
"""Longest instruction, words and pictures together, as in BFL's code."""

LONGEST_TOKEN_CHARACTERS = 256
"""No token of a vocabulary stands for more; only bounds what is read of an endless text."""


def load_mistral(
    folder: Path, pipe: Flux2Pipeline, device: torch.device, *, compiled: bool
) -> tuple["Mistral | None", str]:
    """Return the language model of a loaded checkpoint, or None and why there is none.

    Raises `ModelNotFoundError` for a declaration of the checkpoint that cannot be read.
    """
    if not read_declaration(folder).expander:
        why = f"the checkpoint {folder.name} says that its text encoder cannot write"
    else:
        try:
            return Mistral(pipe, device, compiled=compiled), ""
        except LanguageError as error:
            why = str(error)
    log.info("no language model", reason=why)
    return None, why


class Mistral:
    """The whole text encoder of a loaded pipeline. Threads take turns.

    With `compiled` the step for each further token is compiled, on CUDA into one CUDA graph, and
    keys and values are kept in tensors of a fixed size: they stay allocated, 420 MB of the real
    model. Raises `LanguageError` where a part was not loaded or has been dropped.
    """

    def __init__(
        self,
        pipe: Flux2Pipeline,
        device: torch.device,
        *,
        compiled: bool = False,
        backend: str = "inductor",
    ) -> None:
        missing = missing_parts(pipe.text_encoder)
        if missing:
            raise LanguageError(f"the text encoder is not whole: {', '.join(missing)}")
        self._model = pipe.text_encoder
        # Its own: tokenizers cannot be asked by two threads at a time, and prompts are read by one.
        self._processor = copy.deepcopy(pipe.tokenizer)
        self._turns = threading.Lock()
        self._device = device
        self._ends = _end_tokens(self._model, self._processor.tokenizer)
        self._control = _control_tokens(self._processor.tokenizer)
        self._yes, self._no = (self._first_token(word) for word in ("yes", "no"))
        if self._yes == self._no:
            raise LanguageError("the text encoder's vocabulary cannot tell yes from no")
        self._fixed_cache: Any = None
        self._step = self._logits
        if compiled:
            length = MAX_INPUT_TOKENS + MAX_NEW_TOKENS
            self._fixed_cache = StaticCache(config=self._model.config, max_cache_len=length)
            mode = "reduce-overhead" if device.type == "cuda" else None  # that is CUDA graphs
            self._step = torch.compile(
                self._logits, fullgraph=True, dynamic=False, backend=backend, mode=mode
            )

    @torch.no_grad()
    def warm_up(self) -> None:
        """Compile what is compiled at first use, so that no request waits for it."""
        if self._fixed_cache is None:
            return
        cache = self._fresh_cache()
        self._logits(cache, **self._read("", "", ()))
        for _ in range(3):  # a CUDA graph is recorded at the second call and used from the third
            self._step(cache, input_ids=self._as_input(self._yes))

    def write(
        self,
        system: str,
        user_text: str,
        images: Sequence[Image.Image] = (),
        *,
        seed: int,
        temperature: float,
        max_new_tokens: int = MAX_NEW_TOKENS,
        is_cancelled: IsCancelled = lambda: False,
    ) -> str:
        """Answer `user_text`, and the images before it, under the instruction `system`.

        The same arguments give the same text, whatever else runs. It ends where the model ends
        it, or after as many tokens as are allowed, 512 at most. Raises `CancelledError` at the
        next token once `is_cancelled` says yes, `LanguageError` for an input that is too long, and
        `OutOfMemoryError` and `DeviceLostError` as a pipeline does.
        """
        most = min(max_new_tokens, MAX_NEW_TOKENS)
        random = torch.Generator("cpu").manual_seed(seed)
        with self._turns:
            written = on_device(
                lambda: self._write(
                    system,
                    user_text,
                    images,
                    lambda logits: draw(logits, temperature, random),
                    most,
                    is_cancelled,
                )
            )
            text: str = self._processor.tokenizer.decode(
                written, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def is_yes(self, system: str, question: str, images: Sequence[Image.Image] = ()) -> bool:
        """Say whether the model's next word is rather yes than no; between equals it is yes.

        All other words are as if they could not be said. Raises as `write`.
        """
        with self._turns:
            logits = on_device(lambda: self._answer(system, question, images))
        return bool(logits[self._yes] >= logits[self._no])

    def cut(self, text: str, tokens: int) -> str:
        """Return the beginning of a text that has so many tokens, and is all that is read of it."""
        text = text[: tokens * LONGEST_TOKEN_CHARACTERS]
        with self._turns:
            offsets = self._processor.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]

    @torch.no_grad()
    def _write(
        self,
        system: str,
        text: str,
        images: Sequence[Image.Image],
        choose: Callable[[Tensor], int],
        most: int,
        is_cancelled: IsCancelled,
    ) -> list[int]:
        """Return the tokens of an answer, each taken by `choose` from its logits (V)."""
        _stop_if(is_cancelled)
        cache = self._fresh_cache()
        logits = self._logits(cache, **self._read(system, text, images))
        written: list[int] = []
        while len(written) < most:
            token = choose(_check(logits))
            _stop_if(is_cancelled)
            if token in self._ends:
                break
            written.append(token)
            logits = self._step(cache, input_ids=self._as_input(token))
        return written

    @torch.no_grad()
    def _answer(self, system: str, question: str, images: Sequence[Image.Image]) -> Tensor:
        """Return the logits (V) of the first token of an answer."""
        return _check(self._logits(None, **self._read(system, question, images)))

    def _logits(self, cache: Any, **inputs: Tensor) -> Tensor:
        """Return the logits (B, 1, V) after the last of the inputs, which a cache takes up."""
        output = self._model(
            **inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
        )
        logits: Tensor = output.logits
        return logits

    def _fresh_cache(self) -> Any:
        if self._fixed_cache is None:
            return DynamicCache(config=self._model.config)
        self._fixed_cache.reset()
        return self._fixed_cache

    def _read(self, system: str, text: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Make the model's inputs, without padding.

        Pictures have a turn of their own before the words, as in BFL's code and diffusers'.
        """
        conversation = [{"role": "system", "content": [{"type": "text", "text": system}]}]
        if images:
            content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
            conversation.append({"role": "user", "content": content})
        words = self._without_control_tokens(text)
        conversation.append({"role": "user", "content": [{"type": "text", "text": words}]})
        inputs = self._processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        if length > MAX_INPUT_TOKENS:
            raise LanguageError(f"{length} tokens are more than the {MAX_INPUT_TOKENS} it may read")
        read = {"input_ids": inputs["input_ids"].to(self._device)}
        if images:
            dtype = self._model.model.vision_tower.dtype
            read["pixel_values"] = inputs["pixel_values"].to(self._device, dtype)
            read["image_sizes"] = inputs["image_sizes"].to(self._device)
        return read

    def _without_control_tokens(self, text: str) -> str:
        """Take out what would end the user's turn or stand for a picture.

        Until nothing is left: what is around a token that is taken out may make up another.
        """
        while True:
            cleaned = self._control.sub("", text)
            if cleaned == text:
                return text
            text = cleaned

    def _as_input(self, token: int) -> Tensor:
        return torch.tensor([[token]], device=self._device)

    def _first_token(self, word: str) -> int:
        tokens: list[int] = self._processor.tokenizer.encode(word, add_special_tokens=False)
        return tokens[0]


def missing_parts(text_encoder: Any) -> list[str]:
    """Name what a text encoder lacks for writing and seeing."""
    language = text_encoder.model.language_model
    has, wants = len(language.layers), language.config.num_hidden_layers
    missing = [] if has == wants else [f"{has} of {wants} layers are loaded"]
    parts = {
        "the LM head": getattr(text_encoder, "lm_head", None),
        "the vision tower": getattr(text_encoder.model, "vision_tower", None),
        "the last norm": getattr(language, "norm", None),
    }
    # A part that was dropped is gone, replaced by one that passes its input on, or never filled.
    for name, part in parts.items():
        tensors = [] if part is None else list(part.state_dict().values())
        if not tensors or any(tensor.is_meta for tensor in tensors):
            missing.append(f"{name} is not loaded")
    return missing


def draw(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    """Draw a token from logits (V) in float64 on the CPU, with one random number.

    By the inverse of the distribution's sum, so that how many numbers a text takes does not depend
    on the vocabulary. Tokens of probability zero are never drawn.
    """
    sums = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    height = torch.rand((), generator=random, dtype=torch.float64) * sums[-1]
    return int(torch.searchsorted(sums, height, right=True))


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Match the spellings of all tokens that are no text; the longest first."""
    names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))


def _check(logits: Tensor) -> Tensor:
    """Return the last logits (V), on the CPU and precise, if they are numbers."""
    found = logits[0, -1].to("cpu", torch.float64)
    if not torch.isfinite(found).all():
        raise LanguageError("the text encoder computes no numbers")
    return found


def _stop_if(is_cancelled: IsCancelled) -> None:
    if is_cancelled():
        raise CancelledError("cancelled by the caller")
