"""What is drawn of a prompt: itself, what it is expanded to, or nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import PromptRefusedError
from pipelines.expansion import Expansion, Reason
from pipelines.language import NO_LANGUAGE, Language
from pipelines.screening import PromptCheck
from pipelines.types import IsCancelled
from tests.pipelines.test_flux2 import make_request, never

REQUEST = make_request(expand_prompt=True)


class Louder:
    """Expands by shouting."""

    def expand(
        self,
        prompt: str,
        references: Sequence[Path] = (),
        *,
        seed: int,
        request_id: str = "",
        is_cancelled: IsCancelled = never,
    ) -> Expansion:
        """Return the prompt in capitals."""
        assert (tuple(references), seed) == (REQUEST.reference_images, REQUEST.seed)
        assert request_id == REQUEST.request_id
        assert not is_cancelled()
        return Expansion(prompt.upper(), Reason.EXPANDED)


class Censor:
    """Says yes where the question has a word in it."""

    def __init__(self, word: str) -> None:
        self._word = word

    def is_yes(self, _system: str, question: str, images: Sequence[object] = ()) -> bool:
        """Look for the word."""
        assert not images
        return self._word in question

    def cut(self, text: str, _tokens: int) -> str:
        """Return all of it."""
        return text


def language(word: str) -> Language:
    """Return a language that shouts and refuses a word."""
    return Language(expander=Louder(), prompt_check=PromptCheck(Censor(word), ("Is it so?",)))


def test_prompts_are_expanded_only_when_asked() -> None:
    """Otherwise they are taken as they are."""
    shouting = language("nothing of it")
    assert shouting.choose_prompt(REQUEST, never) == REQUEST.prompt.upper()
    plain = make_request()
    assert shouting.choose_prompt(plain, never) == plain.prompt
    assert NO_LANGUAGE.choose_prompt(REQUEST, never) == REQUEST.prompt


@pytest.mark.parametrize("word", ["lighthouse", "LIGHTHOUSE"])
def test_a_prompt_is_judged_before_and_after(word: str) -> None:
    """What is not in the one may be in the other; the criterion is told."""
    with pytest.raises(PromptRefusedError, match="Is it so?"):
        language(word).choose_prompt(REQUEST, never)
    if word.isupper():
        plain = replace(REQUEST, settings=make_request().settings)
        assert language(word).choose_prompt(plain, never) == REQUEST.prompt
