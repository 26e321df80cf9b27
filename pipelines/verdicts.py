"""What is said of an image before it may leave, and by which rules: the check without its network.

No torch here: the runner uses these values, and finds the networks behind them by import path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from PIL import Image

from pipelines.errors import CheckFailedError, ReferenceRefusedError
from pipelines.types import GenerationSettings

DEFAULT_THRESHOLD = 0.5
"""The least score that is flagged; fal's own."""

DEFAULT_TOLERANCE = 2
"""The `safety_tolerance` that means the operator's own threshold: flex has it by default."""

TOLERANCES: Mapping[int, float] = MappingProxyType({1: -0.4, 2: 0.0, 3: 0.3, 4: 0.6, 5: 0.8})
"""How far each `safety_tolerance` moves the threshold: a share of the way down to 0, or up to 1."""


class Reason(StrEnum):
    """Why an image left or not, in one word for records and metrics."""

    UNCHECKED = "unchecked"
    OK = "ok"
    NSFW = "nsfw"
    OK_SECOND_LOOK = "ok_second_look"
    NSFW_SECOND_LOOK = "nsfw_second_look"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one image. `score` is from 0, surely safe, to 1; None if nobody looked."""

    flagged: bool
    score: float | None
    reason: Reason


UNCHECKED = Verdict(flagged=False, score=None, reason=Reason.UNCHECKED)
"""Said of images that the operator lets leave without a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The scores at which a second look is asked.

    It begins below the threshold, at the share `unsure_from` of it, and ends where the score is
    at least `certain_from`: what is flagged from there on nobody can clear.
    """

    unsure_from: float = 0.5
    certain_from: float = 0.98


SecondLook = Callable[[Image.Image], bool]
"""A slower judge of the images in the band: says whether this one is unsafe."""


class ImageChecker(Protocol):
    """A loaded safety checker."""

    @property
    def description(self) -> str:
        """Name it for people: its folder, its kind, what it looks for, and its device."""
        ...

    def check(self, image: Image.Image, tolerance: int | None = None) -> Verdict:
        """Judge one image; `tolerance` is flex's `safety_tolerance`, 1 to 5.

        Whatever this raises, the image must not leave: `OutOfMemoryError` and `DeviceLostError` as
        a pipeline does, `CheckFailedError` for everything else.
        """
        ...


def threshold_at(threshold: float, tolerance: int | None) -> float:
    """Return the least score that is flagged at a `safety_tolerance`; None means the default.

    A higher tolerance never flags what a lower one lets pass.
    """
    step = TOLERANCES[DEFAULT_TOLERANCE if tolerance is None else tolerance]
    return threshold * (1 + step) if step < 0 else threshold + (1 - threshold) * step


def judge(
    score: float, threshold: float, ask: Callable[[], bool] | None = None, band: Band | None = None
) -> Verdict:
    """Make the verdict of a score; `ask` takes the second look, if there is anybody to take it.

    Raises `CheckFailedError` for what is no score, such as NaN: it would count as below any
    threshold.
    """
    if not 0 <= score <= 1:
        raise CheckFailedError(f"the safety checker's score is {score}")
    band = band or Band()
    fires = score >= threshold
    is_open = score < band.certain_from if fires else score >= threshold * band.unsure_from
    if ask is None or not is_open:
        return Verdict(fires, score, Reason.NSFW if fires else Reason.OK)
    flagged = ask()
    return Verdict(flagged, score, Reason.NSFW_SECOND_LOOK if flagged else Reason.OK_SECOND_LOOK)


def black_out(image: Image.Image) -> Image.Image:
    """Return what leaves in the place of a flagged image: black, of the same size."""
    return Image.new("RGB", image.size)


def look(
    checker: ImageChecker | None, image: Image.Image, settings: GenerationSettings
) -> tuple[Image.Image, Verdict]:
    """Return what may leave, the image or a black one, and why. The only way out for an image.

    Raises as `ImageChecker.check`, and `CheckFailedError` where a check is due that nobody can
    make: no image leaves on the word that it was looked at.
    """
    if not settings.check_safety:
        return image, UNCHECKED
    if checker is None:
        raise CheckFailedError("the image must be checked, and no safety checker is loaded")
    verdict = checker.check(image, settings.safety_tolerance)
    return (black_out(image) if verdict.flagged else image), verdict


def check_references(
    checker: ImageChecker | None, paths: Sequence[Path], settings: GenerationSettings
) -> None:
    """Judge a request's reference images, before anything is made of them.

    Raises `ReferenceRefusedError` for the first that is flagged, and as `look` does.
    """
    for index, path in enumerate(paths):
        with Image.open(path) as picture:
            _, verdict = look(checker, picture.convert("RGB"), settings)
        if verdict.flagged:
            raise ReferenceRefusedError(index)
