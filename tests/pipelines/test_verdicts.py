"""The rules of the check: thresholds, the second look, and what leaves in an image's place."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import CheckFailedError, ReferenceRefusedError
from pipelines.types import GenerationSettings
from pipelines.verdicts import (
    DEFAULT_THRESHOLD,
    TOLERANCES,
    UNCHECKED,
    Band,
    Reason,
    Verdict,
    black_out,
    check_references,
    judge,
    look,
    threshold_at,
)

SHARES = st.floats(0, 1, allow_subnormal=False)
THRESHOLDS = st.floats(0.001, 1)


SETTINGS = GenerationSettings(
    width=16, height=16, num_inference_steps=4, guidance_scale=1.0, safety_tolerance=3
)


class DarkChecker:
    """Flags what is dark, to see in which order it is asked."""

    description = "dark"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def check(self, image: Image.Image, tolerance: int | None = None) -> Verdict:
        """Note the size, and judge by the first pixel."""
        assert tolerance == 3
        self.asked.append(image.size)
        is_dark = image.getpixel((0, 0)) == (0, 0, 0)
        return Verdict(is_dark, None, Reason.NSFW if is_dark else Reason.OK)


def test_the_default_is_that_of_fal() -> None:
    """A half, also for flex's default tolerance; the table of the documentation holds."""
    thresholds = [threshold_at(DEFAULT_THRESHOLD, tolerance) for tolerance in TOLERANCES]
    assert thresholds == pytest.approx([0.3, 0.5, 0.65, 0.8, 0.9])
    assert threshold_at(DEFAULT_THRESHOLD, None) == 0.5


@given(threshold=THRESHOLDS)
def test_tolerance_is_monotone(threshold: float) -> None:
    """More tolerance never flags more, whatever the operator's threshold, and never all or none."""
    thresholds = [threshold_at(threshold, tolerance) for tolerance in sorted(TOLERANCES)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] > 0
    assert thresholds[-1] <= 1
    assert threshold_at(threshold, 2) == threshold_at(threshold, None) == threshold


@given(score=SHARES, threshold=THRESHOLDS)
def test_the_first_verdict_counts_where_nobody_is_asked(score: float, threshold: float) -> None:
    """At the threshold an image is flagged, below it is not."""
    verdict = judge(score, threshold)
    assert verdict.flagged == (score >= threshold)
    assert verdict.reason is (Reason.NSFW if verdict.flagged else Reason.OK)
    assert verdict.score == score


@given(score=SHARES, threshold=THRESHOLDS, answer=st.booleans(), unsure=SHARES, certain=SHARES)
def test_the_second_look_counts_in_its_band_alone(
    score: float, threshold: float, answer: bool, unsure: float, certain: float
) -> None:
    """It can clear what fires below certainty, and flag what is unsure; nothing else changes."""
    calls = []

    def ask() -> bool:
        calls.append(1)
        return answer

    band = Band(unsure_from=unsure, certain_from=certain)
    verdict = judge(score, threshold, ask, band)
    if calls:
        assert verdict.flagged == answer
        assert verdict.reason.value.endswith("second_look")
        assert score < certain or score < threshold
        assert score >= threshold * unsure
    else:
        assert verdict == judge(score, threshold)
        assert score >= certain or score < threshold * unsure


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -0.1, 1.1])
def test_what_is_no_score_is_no_verdict(score: float) -> None:
    """Comparing it with a threshold would let the image pass."""
    with pytest.raises(CheckFailedError):
        judge(score, 0.5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_black_image_has_the_same_size(mode: str) -> None:
    """Nothing of the flagged one is left, and that one is not touched."""
    image = Image.new(mode, (48, 32), "white")
    black = black_out(image)
    assert (black.mode, black.size) == ("RGB", (48, 32))
    assert set(black.tobytes()) == {0}
    assert set(image.tobytes()) == {255}


def test_references_are_judged_in_order(tmp_path: Path) -> None:
    """The first flagged one is named, and those after it are not looked at."""
    paths = []
    for index, colour in enumerate(("white", "black", "black")):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (8 + index, 8), colour).save(paths[-1])
    checker = DarkChecker()
    with pytest.raises(ReferenceRefusedError) as caught:
        check_references(checker, paths, SETTINGS)
    assert caught.value.index == 1
    assert checker.asked == [(8, 8), (9, 8)]
    check_references(checker, paths[:1], SETTINGS)
    check_references(checker, paths, replace(SETTINGS, check_safety=False))
    assert len(checker.asked) == 3


def test_only_what_was_looked_at_leaves() -> None:
    """As it is or black; unseen only where no check is due, and never where nobody can look."""
    dark, light = (Image.new("RGB", (8, 4), name) for name in ("black", "white"))
    checker = DarkChecker()
    assert look(checker, light, SETTINGS) == (light, Verdict(False, None, Reason.OK))
    shown, verdict = look(checker, dark, SETTINGS)
    assert shown is not dark
    assert (shown.size, verdict.flagged) == ((8, 4), True)
    with pytest.raises(CheckFailedError, match="no safety checker"):
        look(None, light, SETTINGS)
    unchecked = replace(SETTINGS, check_safety=False)
    for nobody in (None, checker):
        assert look(nobody, dark, unchecked) == (dark, UNCHECKED)
    assert len(checker.asked) == 2
