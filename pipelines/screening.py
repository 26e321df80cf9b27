"""Yes-or-no questions to a language model: prompts by the operator's criteria, pictures again.

No torch: the language model is given, see `mistral`. What is asked is worded in `instructions`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog
from PIL import Image

from pipelines.errors import CancelledError, CriteriaError, DeviceLostError
from pipelines.instructions import JUDGING, SECOND_LOOK, ask_about
from pipelines.pictures import reduce
from pipelines.types import IsCancelled

log = structlog.get_logger(__name__)

MAX_CRITERIA = 50
"""Each is a question of its own, some tens of milliseconds of the real model."""

MAX_CRITERION_CHARACTERS = 500

READ_TOKENS = 512
"""What the text encoder reads of a prompt when the image is made; nothing behind it has effect."""

SECOND_LOOK_AREA_PIXELS = 512 * 512
"""What a picture is reduced to before it is shown, as in BFL's own filter."""


class Answers(Protocol):
    """A language model that says yes or no; see `pipelines.mistral.Mistral`."""

    def is_yes(self, system: str, question: str, images: Sequence[Image.Image] = ()) -> bool:
        """Say whether the answer is rather yes than no."""
        ...

    def cut(self, text: str, tokens: int) -> str:
        """Return the beginning of a text that has so many tokens."""
        ...


class PromptCheck:
    """Asks of prompts whether they meet criteria for refusal."""

    def __init__(self, language: Answers, criteria: Sequence[str]) -> None:
        self._language = language
        self._criteria = tuple(criteria)

    def find(self, prompt: str, is_cancelled: IsCancelled = lambda: False) -> str | None:
        """Return the first criterion that the prompt meets, or None.

        Whatever the language model raises is raised: a prompt that cannot be checked must not
        pass. Raises `CancelledError` at the next question once `is_cancelled` says yes.
        """
        read = self._language.cut(prompt, READ_TOKENS)
        for criterion in self._criteria:
            if is_cancelled():
                raise CancelledError("cancelled by the caller")
            if self._language.is_yes(JUDGING, ask_about(criterion, read)):
                return criterion
        return None


def second_look(language: Answers, picture: Image.Image) -> bool:
    """Say whether a picture that the checker flagged, or was unsure about, is to be blocked.

    Where the question fails the answer is yes, and the log says so. Raises `DeviceLostError`.
    """
    try:
        shown = reduce(picture, SECOND_LOOK_AREA_PIXELS)
        return language.is_yes(JUDGING, SECOND_LOOK, [shown])
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001  (whatever it is, the picture was not cleared)
        log.error("no second look, the picture stays blocked", reason=repr(error))
        return True


def read_criteria(path: Path) -> tuple[str, ...]:
    """Read a file of criteria, one a line; empty lines and those that begin with # are left out.

    Raises `CriteriaError` for a file that cannot be read, has none, or has too many or too long
    ones.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CriteriaError(f"{path}: cannot be read: {error}") from error
    criteria = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) > MAX_CRITERION_CHARACTERS:
            raise CriteriaError(
                f"{path}, line {number}: more than {MAX_CRITERION_CHARACTERS} characters"
            )
        criteria.append(line)
    if not criteria:
        raise CriteriaError(f"{path}: has no criterion")
    if len(criteria) > MAX_CRITERIA:
        raise CriteriaError(f"{path}: has {len(criteria)} criteria, more than {MAX_CRITERIA}")
    return tuple(criteria)
