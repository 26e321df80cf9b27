"""Scores a picture against what was asked for: colours, shapes, places, counts, and edits.

Every verdict is what a person would say who looks for the one thing in question: a star in the
wrong colour is still a star. Distances of colours are those of `world.colour_distance`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from scripts.train_demo_model.examples import Example
from scripts.train_demo_model.grounds import is_colour, shows_ground
from scripts.train_demo_model.meaning import PLACES, Meaning, Subject
from scripts.train_demo_model.seeing import NEAR, Seen, View, distances, look
from scripts.train_demo_model.world import Thing, colour_distance, draw, draw_mask

DIMENSIONS = ("object_colour", "ground_colour", "shape", "position", "count")

_PLACE_REACH = 0.165  # a place's third of the picture, and a little of the next one
_RELATION_GAP = 0.12  # least distance of two centres, as a fraction of the side
_AT_ITS_PLACE = 0.08  # how far a thing may stand from where an edit should have left it
_COVERED = 0.15  # of a removed thing's area: more of something else there is a remainder
_SAME = 2  # of 255: pixels of target and reference this near are equal
_BORDER = 0.02  # of the shorter side: how far the edge of a change reaches


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts on a drawing; None where the prompt left it open."""

    object_colour: bool | None
    ground_colour: bool | None
    shape: bool | None
    position: bool | None
    count: bool | None


@dataclass(frozen=True, slots=True)
class EditScores:
    """Verdicts on an edit.

    `untouched_error` is the mean absolute error, from 0 to 1, of the pixels that should be as in
    the first reference image.
    """

    followed: bool
    untouched_error: float


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of those that were asked for something got it; `rate` is NaN for none."""

    passed: int
    asked: int

    @property
    def rate(self) -> float:
        """The share of them, from 0 to 1."""
        return self.passed / self.asked if self.asked else math.nan


def score_drawing(meaning: Meaning, picture: Image.Image) -> Scores:
    """Compare an RGB picture with a request to draw. Raises `ValueError` for an edit."""
    if meaning.action != "draw" or meaning.first is None:
        raise ValueError(f"not a drawing: {meaning.action!r}")
    view = look(picture)
    wanted = _list_wanted(meaning)
    matched = _match(wanted, view.things)
    complete = len(matched) == len(wanted) if meaning.second else bool(matched)
    colours = [s.colour is None or is_colour(seen.colour, s.colour) for s, seen in matched]
    return Scores(
        object_colour=complete and all(colours) if any(s.colour for s in wanted) else None,
        ground_colour=shows_ground(view, meaning.ground) if meaning.ground else None,
        shape=complete and all(seen.shape == s.shape for s, seen in matched),
        position=_judge_position(meaning, matched),
        count=len(view.things) == len(wanted),
    )


def score_edit(example: Example, picture: Image.Image, references: list[Image.Image]) -> EditScores:
    """Compare an RGB picture with an edit whose exact answer is known.

    `references` are the pictures that were handed in, the one to be edited first.
    """
    judge = _JUDGES[example.meaning.action]
    return EditScores(
        followed=judge(example, look(picture)),
        untouched_error=_measure_untouched(example, picture, references[0]),
    )


def summarise(scores: Iterable[Scores]) -> dict[str, Rate]:
    """Count the verdicts of each dimension."""
    rows = [dataclasses.asdict(score) for score in scores]
    rates = {}
    for name in DIMENSIONS:
        verdicts = [row[name] for row in rows if row[name] is not None]
        rates[name] = Rate(sum(verdicts), len(verdicts))
    return rates


def summarise_edits(scores: Iterable[tuple[str, EditScores]]) -> dict[str, Rate]:
    """Count the edits that were followed: by action, and all together as "followed"."""
    pairs = list(scores)
    rates = {}
    for action in sorted({action for action, _ in pairs}):
        verdicts = [score.followed for name, score in pairs if name == action]
        rates[action] = Rate(sum(verdicts), len(verdicts))
    rates["followed"] = Rate(sum(score.followed for _, score in pairs), len(pairs))
    return rates


def _list_wanted(meaning: Meaning) -> list[Subject]:
    """List every single thing that should be seen."""
    subjects = [subject for subject in (meaning.first, meaning.second) if subject]
    return [subject for subject in subjects for _ in range(subject.count)]


def _match(wanted: list[Subject], things: tuple[Seen, ...]) -> list[tuple[Subject, Seen]]:
    """Pair what was asked for with the largest things seen, so that as much as possible fits."""
    seen = things[: len(wanted)]
    pairings = [
        list(zip(order, seen, strict=True)) for order in itertools.permutations(wanted, len(seen))
    ]
    return max(pairings, key=lambda pairs: sum(_count_fits(s, thing) for s, thing in pairs))


def _count_fits(subject: Subject, seen: Seen) -> int:
    colour_fits = bool(subject.colour) and is_colour(seen.colour, subject.colour or "")
    return int(colour_fits) + int(seen.shape == subject.shape)


def _judge_position(meaning: Meaning, matched: list[tuple[Subject, Seen]]) -> bool | None:
    """Judge the place of a single thing, or the relation of two different ones."""
    if meaning.second is not None:
        if meaning.relation is None:
            return None
        if len(matched) < 2 or not any(_count_fits(s, seen) for s, seen in matched):
            return False
        first, second = sorted(matched, key=lambda pair: pair[0] is not meaning.first)
        return _stands(first[1], second[1], meaning.relation)
    place = meaning.first.place if meaning.first else None
    if place is None:
        return None
    return bool(matched) and _is_at(matched[0][1], place)


def _stands(first: Seen, second: Seen, relation: str) -> bool:
    """Whether the first thing is clearly there, seen from the second."""
    right, down = first.x - second.x, first.y - second.y
    along = {"left": -right, "right": right, "above": -down, "below": down}[relation]
    aside = down if relation in ("left", "right") else right
    return along >= _RELATION_GAP and along >= abs(aside)


def _is_at(seen: Seen, place: str) -> bool:
    return all(
        abs(value - middle) <= _PLACE_REACH
        or (middle < 0.5 and value < middle)
        or (middle > 0.5 and value > middle)
        for value, middle in zip((seen.x, seen.y), PLACES[place], strict=True)
    )


def _is_same(seen: Seen, thing: Thing, colour: str | None = None) -> bool:
    """Whether a thing of a scene is what is seen; `colour` are the words that asked for it."""
    if seen.shape != thing.shape:
        return False
    if colour:
        return is_colour(seen.colour, colour)
    return colour_distance(seen.colour, thing.colour) < NEAR


def _is_near(seen: Seen, thing: Thing) -> bool:
    return math.hypot(seen.x - thing.x, seen.y - thing.y) <= _AT_ITS_PLACE


def _find_changed(example: Example) -> Thing:
    """Give the thing of the target that the edit made or changed."""
    before = example.references[0].things
    return next(thing for thing in example.target.things if thing not in before)


def _judge_change(example: Example, view: View) -> bool:
    """Recolour and replace: at the thing's place is what it should have become."""
    changed = _find_changed(example)
    becomes = example.meaning.second or Subject()
    return any(
        _is_near(seen, changed)
        and seen.shape == changed.shape
        and (becomes.colour is None or is_colour(seen.colour, becomes.colour))
        for seen in view.things
    )


def _judge_remove(example: Example, view: View) -> bool:
    """Nothing is left where the thing was; what stands elsewhere is not asked here."""
    after = example.target.things
    gone = next(thing for thing in example.references[0].things if thing not in after)
    height, width = view.pixels.shape[:2]
    place = np.asarray(draw_mask(gone, width, height)) > 127
    for other in after:
        place &= np.asarray(draw_mask(other, width, height)) == 0
    covered = sum(float(np.sum(seen.mask & place)) for seen in view.things)
    return covered < _COVERED * float(place.sum())


def _judge_move(example: Example, view: View) -> bool:
    """The thing is at its goal, and is not where it was."""
    moved = _find_changed(example)
    old = next(
        thing for thing in example.references[0].things if thing not in example.target.things
    )
    place = (example.meaning.second or Subject()).place or "center"
    arrived, stayed = False, False
    for seen in view.things:
        if not _is_same(seen, moved):
            continue
        to_old = math.hypot(seen.x - old.x, seen.y - old.y)
        is_nearer = math.hypot(seen.x - moved.x, seen.y - moved.y) < to_old
        arrived |= is_nearer and _is_at(seen, place)
        stayed |= not is_nearer and to_old <= _AT_ITS_PLACE
    return arrived and not stayed


def _judge_add(example: Example, view: View) -> bool:
    """The new thing is at its place, and was not one of the old ones."""
    new = example.meaning.second or Subject()
    added = _find_changed(example)
    return any(
        _is_same(seen, added, new.colour)
        and _is_at(seen, new.place or "center")
        and not any(
            _is_near(seen, old) and _is_same(seen, old) for old in example.references[0].things
        )
        for seen in view.things
    )


def _judge_ground(example: Example, view: View) -> bool:
    return example.meaning.ground is not None and shows_ground(view, example.meaning.ground)


def _judge_combine(example: Example, view: View) -> bool:
    """The thing of image 2 stands anywhere in image 1: on its ground, beside one of its things."""
    donor = example.references[1].things[0]
    already = sum(
        thing.shape == donor.shape and colour_distance(thing.colour, donor.colour) < NEAR
        for thing in example.references[0].things
    )
    if sum(_is_same(seen, donor) for seen in view.things) <= already:
        return False
    if not any(
        _is_near(seen, thing) and _is_same(seen, thing)
        for thing in example.references[0].things
        for seen in view.things
    ):
        return False
    height, width = view.pixels.shape[:2]
    target = np.asarray(draw(example.target, width, height), np.float32)
    apart = distances(view.pixels, target)[view.ground]
    return bool(apart.size) and float(np.mean(apart < NEAR)) > 0.7


_JUDGES = {
    "recolour": _judge_change,
    "replace": _judge_change,
    "remove": _judge_remove,
    "move": _judge_move,
    "add": _judge_add,
    "ground": _judge_ground,
    "combine": _judge_combine,
}


def _measure_untouched(example: Example, picture: Image.Image, reference: Image.Image) -> float:
    """Measure the error where the exact answer is as the reference; 0 if that is nowhere."""
    size = picture.size
    target = np.asarray(draw(example.target, *size), np.int16)
    before = np.asarray(reference.convert("RGB").resize(size), np.int16)
    changed = (np.abs(target - before).max(axis=2) > _SAME).astype(np.uint8)
    reach = 2 * math.ceil(_BORDER * min(size)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    kept = cv2.dilate(changed, disc) == 0
    if not kept.any():
        return 0.0
    error = np.abs(np.asarray(picture.convert("RGB"), np.int16) - before)[kept]
    return float(error.mean()) / 255
