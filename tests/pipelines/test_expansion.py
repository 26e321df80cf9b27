"""Prompt expansion over the tiny checkpoint: repeatable, private, and never in the way."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from pipelines.errors import CancelledError, DeviceLostError, OutOfMemoryError
from pipelines.expansion import (
    Expander,
    Expansion,
    ExpansionCache,
    Reason,
    Unavailable,
    make_expander,
)
from pipelines.flux2 import Flux2
from pipelines.instructions import DRAWING, EDITING, MAX_PROMPT_CHARACTERS
from pipelines.mistral import Mistral
from pipelines.types import GenerationRequest, GenerationSettings

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = 8
PROMPT = "a boat"


@pytest.fixture
def fresh(mistral: Mistral) -> Callable[[], Expander]:
    """Return a function that makes an expander which remembers nothing yet."""
    return lambda: Expander(mistral, max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def four(references: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return four reference images."""
    return (*references, references[0])


class Answering:
    """A language model that gives one answer, or raises, and notes what it was asked."""

    def __init__(self, answer: str | Exception) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str, Sequence[Image.Image]]] = []

    def write(
        self,
        system: str,
        user_text: str,
        images: Sequence[Image.Image] = (),
        **_options: object,
    ) -> str:
        """Answer as it was made to."""
        self.asked.append((system, user_text, images))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_the_same_request_gives_the_same_text(
    fresh: Callable[[], Expander],
    flux2: Flux2,
    four: tuple[Path, ...],
    count: int,
) -> None:
    """With none to four references, after another request and an image were made in between."""
    first = fresh().expand(PROMPT, four[:count], seed=3)
    fresh().expand("something else", four[:1], seed=8)
    settings = GenerationSettings(width=64, height=64, num_inference_steps=1, guidance_scale=2.5)
    request = GenerationRequest(
        request_id="r", prompt=PROMPT, seed=1, num_images=2, settings=settings
    )
    assert len(list(flux2.generate(request, lambda _: None, lambda: False))) == 2
    assert fresh().expand(PROMPT, four[:count], seed=3) == first
    assert first.reason is Reason.EXPANDED
    assert first.prompt != PROMPT


def test_seeds_write_different_texts(fresh: Callable[[], Expander]) -> None:
    """Of ten seeds at least two texts differ, and fal's smallest and largest seed are taken."""
    seeds = (*range(10), -(2**63), 2**63 - 1)
    texts = {fresh().expand(PROMPT, seed=seed).prompt for seed in seeds}
    assert len(texts) > 1
    assert PROMPT not in texts


def test_random_numbers_of_others_are_left_alone(fresh: Callable[[], Expander]) -> None:
    """The noise of whoever uses the global generator is the same with and without it."""
    before = torch.random.get_rng_state()
    fresh().expand(PROMPT, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_references_choose_the_task(four: tuple[Path, ...]) -> None:
    """Editing shows the language model all pictures in one, within the area for them."""
    language = Answering("a better prompt")
    Expander(language).expand(PROMPT, seed=1)
    Expander(language).expand(PROMPT, four, seed=1)
    (drawing, _, nothing), (editing, text, (picture,)) = language.asked
    assert (drawing, editing, text, list(nothing)) == (DRAWING, EDITING, PROMPT, [])
    assert picture.width * picture.height <= 768**2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (OutOfMemoryError("full"), "OutOfMemoryError: full"),
        (RuntimeError("shapes"), "RuntimeError: shapes"),
    ],
)
def test_a_failure_loses_nothing(error: Exception, told: str) -> None:
    """The caller's prompt is used, the log says why and has no word of the prompt."""
    with capture_logs() as logs:
        got = Expander(Answering(error)).expand(PROMPT, seed=1, request_id="abc")
    assert got == Expansion(PROMPT, Reason.FAILED)
    (line,) = logs
    assert (line["request_id"], line["reason"], line["detail"]) == ("abc", "failed", told)
    assert PROMPT not in str(line)


def test_the_real_model_fails_without_loss_too(
    fresh: Callable[[], Expander], tmp_path: Path
) -> None:
    """A reference that is gone, one that is no picture, and words with too many tokens."""
    broken = tmp_path / "0.png"
    assert fresh().expand(PROMPT, [broken], seed=1) == Expansion(PROMPT, Reason.FAILED)
    broken.write_bytes(b"no picture")
    assert fresh().expand(PROMPT, [broken], seed=1) == Expansion(PROMPT, Reason.FAILED)
    many = "灯台" * (MAX_PROMPT_CHARACTERS // 2)
    assert fresh().expand(many, seed=1) == Expansion(many, Reason.FAILED)


@pytest.mark.parametrize("error", [CancelledError("stop"), DeviceLostError("gone")])
def test_what_is_no_failure_of_the_expansion_goes_on(error: Exception) -> None:
    """A cancel ends the request, and a lost device the process."""
    with pytest.raises(type(error)):
        Expander(Answering(error)).expand(PROMPT, seed=1)


def test_a_cancel_stops_the_writing(fresh: Callable[[], Expander]) -> None:
    """It reaches the language model, and nothing is remembered of what was half written."""
    expander, answers = fresh(), iter([False, False, True])
    with pytest.raises(CancelledError):
        expander.expand(PROMPT, seed=1, is_cancelled=lambda: next(answers))
    assert expander.expand(PROMPT, seed=1) == fresh().expand(PROMPT, seed=1)


@pytest.mark.parametrize("answer", ["", "  \n", '""', "<think>hm, a boat"])
def test_an_empty_answer_is_none(answer: str) -> None:
    """Nothing would be drawn from it, so the caller's prompt is."""
    assert Expander(Answering(answer)).expand(PROMPT, seed=1) == Expansion(PROMPT, Reason.EMPTY)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", Reason.EMPTY),
        (" \n", Reason.EMPTY),
        ("x" * (MAX_PROMPT_CHARACTERS + 1), Reason.TOO_LONG),
    ],
)
def test_some_prompts_are_not_expanded(prompt: str, reason: Reason) -> None:
    """Nothing comes of nothing, and what is longer than the model reads needs no more words."""
    language = Answering("more")
    assert Expander(language).expand(prompt, seed=1) == Expansion(prompt, reason)
    assert not language.asked
    just = "x" * MAX_PROMPT_CHARACTERS
    assert Expander(language).expand(just, seed=1) == Expansion("more", Reason.EXPANDED)


def test_an_expansion_is_remembered_by_all_that_it_depends_on(four: tuple[Path, ...]) -> None:
    """The same again asks nobody; another prompt, seed, picture or order of pictures does."""
    language = Answering('"a better prompt"')
    expander = Expander(language)
    calls: list[tuple[str, tuple[Path, ...], int]] = [
        (PROMPT, (), 1),
        (PROMPT, (), 2),
        ("a goat", (), 1),
        (PROMPT, four[:1], 1),
        (PROMPT, four[:2], 1),
        (PROMPT, four[1::-1], 1),
    ]
    for prompt, pictures, seed in calls * 2:
        got = expander.expand(prompt, pictures, seed=seed)
        assert got == Expansion("a better prompt", Reason.EXPANDED)
    assert len(language.asked) == len(calls)


def test_failures_are_not_remembered() -> None:
    """The next request tries again."""
    language = Answering("")
    expander = Expander(language)
    expander.expand(PROMPT, seed=1)
    expander.expand(PROMPT, seed=1)
    assert len(language.asked) == 2


def test_the_memory_is_bounded() -> None:
    """What was not asked for longest goes first."""
    cache = ExpansionCache(2)
    for key in ("a", "b"):
        cache.put(key, key.upper())
    assert cache.get("a") == "A"
    cache.put("c", "C")
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]


def test_without_a_language_model_it_is_said_at_every_request() -> None:
    """The caller's prompt is used, and an operator sees how often that happens, and why."""
    expander = make_expander(None, "30 of 40 layers are loaded")
    assert isinstance(expander, Unavailable)
    with capture_logs() as logs:
        for name in ("one", "two"):
            got = expander.expand(PROMPT, seed=1, request_id=name)
            assert got == Expansion(PROMPT, Reason.UNAVAILABLE)
    assert [(line["request_id"], line["detail"]) for line in logs] == [
        ("one", "30 of 40 layers are loaded"),
        ("two", "30 of 40 layers are loaded"),
    ]
    assert isinstance(make_expander(Answering(""), ""), Expander)
