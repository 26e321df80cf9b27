"""Prompt expansion: a short prompt becomes the text that the image is drawn from. No torch.

It never fails a request: whatever goes wrong, the caller's own prompt is used and the log says
why. The language model itself is in `mistral`, what it is told in `instructions`.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import structlog
from PIL import Image

from pipelines.errors import CancelledError, DeviceLostError
from pipelines.instructions import (
    MAX_NEW_TOKENS,
    MAX_PROMPT_CHARACTERS,
    PICTURE_AREA_PIXELS,
    TEMPERATURE,
    task_for,
    tidy,
)
from pipelines.pictures import side_by_side
from pipelines.types import IsCancelled

log = structlog.get_logger(__name__)

REMEMBERED_EXPANSIONS = 1000
"""How many are kept: a few megabytes, as neither prompts nor answers are longer than a page."""


class Reason(StrEnum):
    """Why a prompt is what it is after the expansion: `expanded`, or why it is the caller's."""

    EXPANDED = "expanded"
    EMPTY = "empty"  # the prompt or the answer
    TOO_LONG = "too_long"  # to need any
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Expansion:
    """The prompt to use, and why this one."""

    prompt: str
    reason: Reason


class Writes(Protocol):
    """A language model that answers; see `pipelines.mistral.Mistral.write`."""

    def write(
        self,
        system: str,
        user_text: str,
        images: Sequence[Image.Image] = (),
        *,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        is_cancelled: IsCancelled,
    ) -> str:
        """Answer `user_text`, and the images before it, under the instruction `system`."""
        ...


class Expands(Protocol):
    """Expands the prompts of requests that ask for it."""

    def expand(
        self,
        prompt: str,
        references: Sequence[Path] = (),
        *,
        seed: int,
        request_id: str = "",
        is_cancelled: IsCancelled = lambda: False,
    ) -> Expansion:
        """Return the prompt to use. Raises `CancelledError` and `DeviceLostError`, nothing else."""
        ...


class ExpansionCache:
    """Expanded prompts by what they were made from, the least recently used forgotten first."""

    def __init__(self, limit: int = REMEMBERED_EXPANSIONS) -> None:
        self._limit = limit
        self._kept: OrderedDict[object, str] = OrderedDict()

    def get(self, key: object) -> str | None:
        """Return what was put under this key, if it is still known."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: object, prompt: str) -> None:
        """Remember a prompt, and forget the one that was longest not asked for."""
        self._kept[key] = prompt
        self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)


class Expander:
    """Has a language model write the prompts. For one thread.

    The same prompt, references and seed give the same text, remembered or not.
    """

    def __init__(
        self,
        language: Writes,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        cache: ExpansionCache | None = None,
    ) -> None:
        self._language = language
        self._max_new_tokens = max_new_tokens
        self._cache = ExpansionCache() if cache is None else cache

    def expand(
        self,
        prompt: str,
        references: Sequence[Path] = (),
        *,
        seed: int,
        request_id: str = "",
        is_cancelled: IsCancelled = lambda: False,
    ) -> Expansion:
        """Return the prompt to use; see `Expands`."""
        reason = why_not(prompt)
        if reason:
            return keep(prompt, reason, request_id)
        started = time.monotonic()
        try:
            key = key_of(prompt, references, seed)
            text = self._cache.get(key)
            remembered = text is not None
            if text is None:
                text = self._write(prompt, references, seed, is_cancelled)
        except (CancelledError, DeviceLostError):
            raise
        except Exception as error:  # noqa: BLE001  (the image matters more than a better prompt)
            return keep(prompt, Reason.FAILED, request_id, f"{type(error).__name__}: {error}")
        if not text:
            return keep(prompt, Reason.EMPTY, request_id)
        self._cache.put(key, text)
        log.info(
            "prompt expanded",
            request_id=request_id,
            characters=len(text),
            remembered=remembered,
            seconds=round(time.monotonic() - started, 3),
        )
        return Expansion(text, Reason.EXPANDED)

    def _write(
        self, prompt: str, references: Sequence[Path], seed: int, is_cancelled: IsCancelled
    ) -> str:
        answer = self._language.write(
            task_for(has_references=bool(references)),
            prompt,
            [side_by_side(references, PICTURE_AREA_PIXELS)] if references else [],
            seed=seed,
            temperature=TEMPERATURE,
            max_new_tokens=self._max_new_tokens,
            is_cancelled=is_cancelled,
        )
        return tidy(answer)


class Unavailable:
    """Stands for an expander where there is none, and says so in the log at each request."""

    def __init__(self, why: str) -> None:
        self._why = why

    def expand(
        self,
        prompt: str,
        references: Sequence[Path] = (),  # noqa: ARG002  (as `Expands` has them)
        *,
        seed: int,  # noqa: ARG002
        request_id: str = "",
        is_cancelled: IsCancelled = lambda: False,  # noqa: ARG002
    ) -> Expansion:
        """Return the prompt as it is."""
        return keep(prompt, Reason.UNAVAILABLE, request_id, self._why)


def make_expander(
    language: Writes | None, why_none: str, *, max_new_tokens: int = MAX_NEW_TOKENS
) -> Expands:
    """Make the expander over a language model, or what stands for it where there is none."""
    if language is None:
        return Unavailable(why_none)
    return Expander(language, max_new_tokens=max_new_tokens)


def why_not(prompt: str) -> Reason | None:
    """Say why a prompt is to be used as it is, or None where it may be expanded."""
    if not prompt.strip():
        return Reason.EMPTY
    return Reason.TOO_LONG if len(prompt) > MAX_PROMPT_CHARACTERS else None


def keep(prompt: str, reason: Reason, request_id: str, detail: str = "") -> Expansion:
    """Fall back to the caller's prompt and say so in the log, which gets no word of it."""
    log.warning(
        "prompt not expanded, used as it is",
        request_id=request_id,
        reason=reason.value,
        detail=detail,
    )
    return Expansion(prompt, reason)


def key_of(prompt: str, references: Sequence[Path], seed: int) -> tuple[object, ...]:
    """Name an expansion by all that it depends on. Raises OSError for an unreadable reference."""
    hashes = []
    for path in references:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").digest())
    return prompt, tuple(hashes), seed
