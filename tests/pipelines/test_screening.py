"""Questions about prompts and pictures: what is asked, and what an answer means."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from structlog.testing import capture_logs

from pipelines.errors import CancelledError, CriteriaError, DeviceLostError, LanguageError
from pipelines.instructions import JUDGING, SECOND_LOOK
from pipelines.mistral import Mistral
from pipelines.screening import (
    MAX_CRITERIA,
    MAX_CRITERION_CHARACTERS,
    PromptCheck,
    read_criteria,
    second_look,
)

CRITERIA = ("asks for a living person", "names a trademark")


class Judge:
    """Says yes to questions with a word in them, or raises, and notes what it was asked."""

    def __init__(self, word: str, error: Exception | None = None) -> None:
        self._word = word
        self._error = error
        self.asked: list[tuple[str, str, Sequence[Image.Image]]] = []

    def is_yes(self, system: str, question: str, images: Sequence[Image.Image] = ()) -> bool:
        """Answer as it was made to."""
        self.asked.append((system, question, images))
        if self._error:
            raise self._error
        return self._word in question

    def cut(self, text: str, tokens: int) -> str:
        """Take a character for a token."""
        return text[:tokens]


@pytest.mark.parametrize(
    ("word", "found", "questions"),
    [("living", CRITERIA[0], 1), ("trademark", CRITERIA[1], 2), ("nothing", None, 2)],
)
def test_the_first_criterion_that_is_met_is_told(
    word: str, found: str | None, questions: int
) -> None:
    """Each is a question of its own, with the prompt in it, until one is answered with yes."""
    judge = Judge(word)
    assert PromptCheck(judge, CRITERIA).find("a boat") == found
    assert len(judge.asked) == questions
    assert all(system == JUDGING and "a boat" in asked for system, asked, _ in judge.asked)


def test_only_what_the_model_reads_is_asked_about() -> None:
    """The words behind its 512 tokens have no effect on the image."""
    judge = Judge("weapon")
    assert PromptCheck(judge, CRITERIA).find("x" * 512 + "weapon") is None
    assert PromptCheck(judge, CRITERIA).find("x" * 506 + "weapon") == CRITERIA[0]


def test_a_prompt_that_cannot_be_checked_does_not_pass() -> None:
    """The error is raised; whoever asks refuses the request."""
    with pytest.raises(LanguageError):
        PromptCheck(Judge("", LanguageError("damaged")), CRITERIA).find("a boat")


def test_a_cancel_is_heard_before_the_next_question() -> None:
    """The first question was asked, the second is not."""
    judge, answers = Judge("nothing"), iter([False, True])
    with pytest.raises(CancelledError):
        PromptCheck(judge, CRITERIA).find("a boat", lambda: next(answers))
    assert len(judge.asked) == 1


def test_a_second_look_sees_a_small_picture() -> None:
    """The question goes with the picture in RGB, reduced to the area for it."""
    judge = Judge("nudity")
    assert second_look(judge, Image.new("RGBA", (2048, 2048)))
    ((system, question, (shown,)),) = judge.asked
    assert (system, question, shown.mode, shown.size) == (JUDGING, SECOND_LOOK, "RGB", (512, 512))
    assert not second_look(Judge("nothing"), Image.new("RGB", (64, 64)))


def test_a_second_look_that_fails_clears_nothing() -> None:
    """The picture stays blocked and the log says why; a lost device ends the process instead."""
    picture = Image.new("RGB", (64, 64))
    with capture_logs() as logs:
        assert second_look(Judge("", LanguageError("damaged")), picture)
    assert "damaged" in logs[0]["reason"]
    with pytest.raises(DeviceLostError):
        second_look(Judge("", DeviceLostError("gone")), picture)


@pytest.mark.usefixtures("one_thread")
def test_the_text_encoder_answers_all_of_it(mistral: Mistral) -> None:
    """On the tiny checkpoint, whose answers mean nothing but are always the same."""
    check, picture = PromptCheck(mistral, CRITERIA), Image.new("RGB", (600, 600), "red")
    assert check.find("a boat " * 1000) == check.find("a boat " * 1000)
    assert second_look(mistral, picture) == second_look(mistral, picture)


def test_criteria_are_read_line_by_line(tmp_path: Path) -> None:
    """Empty lines and remarks are left out."""
    path = tmp_path / "criteria"
    path.write_text(f"# ours\n\n  {CRITERIA[0]}  \r\n{CRITERIA[1]}", encoding="utf-8")
    assert read_criteria(path) == CRITERIA
    path.write_text("\n".join(["x" * MAX_CRITERION_CHARACTERS] * MAX_CRITERIA), encoding="utf-8")
    assert len(read_criteria(path)) == MAX_CRITERIA


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no criterion"),
        (b"# nothing\n", "has no criterion"),
        (b"\xff\xfe", "cannot be read"),
        (b"fine\n" + b"x" * (MAX_CRITERION_CHARACTERS + 1), "line 2: more than 500 characters"),
        (b"x\n" * (MAX_CRITERIA + 1), "has 51 criteria, more than 50"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    """A check that its operator believes in must not silently ask nothing."""
    path = tmp_path / "criteria"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CriteriaError, match=told) as caught:
        read_criteria(path)
    assert str(path) in str(caught.value)
