"""The checker says yes to what was drawn as asked, and no to what was not."""

import dataclasses
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from scripts.train_demo_model.adherence import DIMENSIONS, Scores, score_drawing, score_edit
from scripts.train_demo_model.choose_heldout import is_answerable, is_visible
from scripts.train_demo_model.drawing import Settings, evaluate_pipeline, summarise_outcomes
from scripts.train_demo_model.examples import Example, realise
from scripts.train_demo_model.heldout import is_held_out, load_held_out
from scripts.train_demo_model.meaning import (
    CONTRAST,
    EDITS,
    PLACES,
    GroundWords,
    Meaning,
    Subject,
    sample_drawing,
    sample_edit,
)
from scripts.train_demo_model.seeing import look
from scripts.train_demo_model.world import COLOURS, SHAPES, colour_distance, draw, parse_colour

SIDE = 256
EXACT, WORN, WRONG, EDITED = 120, 60, 15, 21
"""How many pictures each test looks at."""


def sample_answerable(source: random.Random, count: int) -> Iterator[tuple[Meaning, Example, int]]:
    """Draw requests of which each thing stands out, with an example and the picture's width."""
    for _ in range(20 * count):
        meaning = sample_drawing(source)
        large_group = meaning.first and meaning.first.count > 1 and meaning.first.size == "large"
        # Large ones of several may overlap in this world, and are no separate things then.
        if is_answerable(meaning) and not large_group:
            aspect = source.choice((1.0, 4 / 3))
            yield meaning, realise(meaning, aspect, source), round(SIDE * aspect)
            count -= 1
            if not count:
                return


def wear(picture: Image.Image, source: np.random.Generator) -> Image.Image:
    """Do to a picture what a small model does: blur, noise, a shift of colour; then JPEG."""
    blurred = picture.filter(ImageFilter.GaussianBlur(0.01 * min(picture.size)))
    values = np.asarray(blurred, float)
    values = values + source.normal(0, 6, values.shape) + source.uniform(-10, 10, 3)
    packed = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(packed, "JPEG", quality=75)
    return Image.open(packed).convert("RGB")


def check_rates(verdicts: list[Scores], least: float) -> None:
    """Require that nearly all that was asked for was found, in every dimension."""
    rows = [dataclasses.asdict(scores) for scores in verdicts]
    for name in DIMENSIONS:
        asked = [row[name] for row in rows if row[name] is not None]
        assert len(asked) >= len(rows) / 4, f"{name} was hardly asked for"
        assert sum(asked) >= least * len(asked), f"{name}: {sum(asked)} of {len(asked)}"


def test_exact_pictures_are_found_to_be_as_asked() -> None:
    """At least 99 % pass in every dimension."""
    verdicts = [
        score_drawing(meaning, draw(example.target, width, SIDE))
        for meaning, example, width in sample_answerable(random.Random(1), EXACT)
    ]
    check_rates(verdicts, 0.99)


def test_worn_pictures_are_found_to_be_as_asked() -> None:
    """Blur, noise, a shift of colour and JPEG change hardly a verdict."""
    noise = np.random.default_rng(2)
    verdicts = [
        score_drawing(meaning, wear(draw(example.target, width, SIDE), noise))
        for meaning, example, width in sample_answerable(random.Random(2), WORN)
    ]
    check_rates(verdicts, 0.98)


def other_colour(meaning: Meaning, source: random.Random) -> Meaning:
    """Ask for a colour that the picture's thing visibly does not have."""
    assert meaning.first
    seen = parse_colour(meaning.first.colour or "")
    # The nearest name may be called right, however far it is.
    _, *others = sorted(COLOURS, key=lambda name: colour_distance(COLOURS[name], seen))
    names = [name for name in others if colour_distance(COLOURS[name], seen) >= CONTRAST]
    return replace_first(meaning, colour=source.choice(names))


def other_shape(meaning: Meaning, source: random.Random) -> Meaning:
    """Ask for another shape."""
    assert meaning.first
    shapes = [name for name in SHAPES if name != meaning.first.shape]
    return replace_first(meaning, shape=source.choice(shapes))


def other_place(meaning: Meaning, source: random.Random) -> Meaning:
    """Ask for another place."""
    assert meaning.first
    places = [name for name in PLACES if name != meaning.first.place]
    return replace_first(meaning, place=source.choice(places))


def other_count(meaning: Meaning, source: random.Random) -> Meaning:
    """Ask for several things instead of one."""
    return replace_first(meaning, count=source.choice((2, 3)))


def other_ground(meaning: Meaning, source: random.Random) -> Meaning:
    """Ask for the same ground in another direction, kind or colour."""
    assert meaning.ground
    ground = meaning.ground
    seen = ground.colours[0]
    _, *further = sorted(COLOURS, key=lambda name: colour_distance(COLOURS[name], seen))
    names = [name for name in further if colour_distance(COLOURS[name], seen) >= CONTRAST]
    others = [dataclasses.replace(ground, first=source.choice(names))]
    if ground.kind == "plain":
        others.append(GroundWords("stripes", ground.first, source.choice(names)))
    else:
        others.append(dataclasses.replace(ground, across=not ground.across))
        others.append(GroundWords("plain", ground.first))
    return dataclasses.replace(meaning, ground=source.choice(others))


def replace_first(meaning: Meaning, **changes: Any) -> Meaning:
    """Ask for a thing with something different about it."""
    assert meaning.first
    return dataclasses.replace(meaning, first=dataclasses.replace(meaning.first, **changes))


@pytest.mark.parametrize(
    ("dimension", "change"),
    [
        ("object_colour", other_colour),
        ("shape", other_shape),
        ("position", other_place),
        ("count", other_count),
        ("ground_colour", other_ground),
    ],
)
def test_what_differs_is_found(
    dimension: str, change: Callable[[Meaning, random.Random], Meaning]
) -> None:
    """A picture of something else fails in the one dimension that differs, and in no other."""
    source = random.Random(3)
    failed: Counter[str] = Counter()
    seen = 0
    for meaning, example, width in sample_answerable(source, 20 * WRONG):
        if not (meaning.first and meaning.first.place and meaning.ground):
            continue
        scores = score_drawing(change(meaning, source), draw(example.target, width, SIDE))
        failed.update(k for k, value in dataclasses.asdict(scores).items() if value is False)
        seen += 1
        if seen == WRONG:
            break
    assert seen == WRONG
    assert failed == {dimension: WRONG}


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_a_relation_is_not_its_opposite(relation: str) -> None:
    """Two things stand as asked in one of the four relations only."""
    first, second = Subject("star", "red"), Subject("square", "blue")
    asked = Meaning("draw", first, second, GroundWords("plain", "white"), relation)
    picture = draw(realise(asked, 1.0, random.Random(4)).target, SIDE, SIDE)
    verdicts = {
        name: score_drawing(dataclasses.replace(asked, relation=name), picture).position
        for name in ("left", "right", "above", "below")
    }
    assert verdicts == {name: name == relation for name in verdicts}


def test_edits_are_followed_by_their_answer_and_not_by_a_reference() -> None:
    """The exact answer passes, worn or not; handing back an untouched reference never does."""
    source, noise = random.Random(5), np.random.default_rng(5)
    seen: Counter[str] = Counter()
    for index in range(20 * EDITED):
        action = EDITS[index % len(EDITS)]
        example = realise(sample_edit(source, action), 1.0, source)
        if not is_visible(example) or seen[action] == EDITED // len(EDITS):
            continue
        seen[action] += 1
        references = [draw(scene, SIDE, SIDE) for scene in example.references]
        answer = draw(example.target, SIDE, SIDE)
        scores = score_edit(example, answer, references)
        assert (scores.followed, scores.untouched_error) == (True, 0.0), example
        assert score_edit(example, wear(answer, noise), references).followed, example
        for reference in references:
            assert not score_edit(example, reference, references).followed, example
    assert seen == dict.fromkeys(EDITS, EDITED // len(EDITS))


def test_untouched_pixels_that_change_are_counted() -> None:
    """An answer that is 51 of 255 too dark or too light has an error of a fifth where it counts."""
    source = random.Random(6)
    meaning = Meaning("remove", Subject("circle", "red"))
    example = realise(meaning, 1.0, source)
    reference = draw(example.references[0], SIDE, SIDE)
    values = np.asarray(draw(example.target, SIDE, SIDE), np.int16)
    moved = np.where(values < 128, values + 51, values - 51).astype(np.uint8)
    error = score_edit(example, Image.fromarray(moved), [reference]).untouched_error
    assert error == pytest.approx(0.2, abs=1e-3)


def test_an_empty_picture_shows_nothing_that_was_asked() -> None:
    """Plain gray passes in no dimension, and neither does noise."""
    meaning = Meaning(
        "draw", Subject("star", "red", place="left"), None, GroundWords("plain", "white")
    )
    noise = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    for picture in (Image.new("RGB", (SIDE, SIDE), "gray"), Image.fromarray(noise)):
        scores = score_drawing(meaning, picture)
        assert scores == Scores(
            object_colour=False, ground_colour=False, shape=False, position=False, count=False
        )


def test_a_picture_without_sense_is_read_in_bounded_work() -> None:
    """Of hundreds of coloured patches only so many are looked at as things."""
    patches = np.random.default_rng(8).integers(0, 256, (32, 32, 3), np.uint8)
    picture = Image.fromarray(patches).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    assert 8 <= len(look(picture).things) <= 64


def test_the_held_out_set_is_whole_and_recognised() -> None:
    """200 prompts and 100 edits, each caption once; case and final period do not hide one."""
    held = load_held_out()
    captions = [e.caption for e in held.drawings] + [e.caption for e in held.edits]
    assert (len(held.drawings), len(held.edits), len(set(captions))) == (200, 100, 300)
    assert {entry.example.meaning.action for entry in held.edits} == set(EDITS)
    assert all(is_held_out(caption.upper().removesuffix(".") + ".") for caption in captions)
    assert not is_held_out("a photograph of a fox")


def test_an_evaluation_counts_what_the_pipeline_did() -> None:
    """A pipeline that always answers with a white picture of the size asked for scores nothing."""
    calls = []

    class WhitePipeline:
        """Answers like `Flux2Pipeline`."""

        def __call__(self, **settings: object) -> object:
            calls.append(settings)
            self.images = [Image.new("RGB", (96, 64), "white")]
            return self

    held = load_held_out()
    settings = Settings(steps=4, width=96, height=64)
    outcomes = evaluate_pipeline(WhitePipeline(), held.drawings[:2], held.edits[:1], settings)
    assert [call["prompt"] for call in calls] == [outcome.entry.caption for outcome in outcomes]
    assert [len(outcome.references) for outcome in outcomes] == [0, 0, 1]
    rates = summarise_outcomes(outcomes)
    assert (rates["shape"].passed, rates["shape"].asked) == (0, 2)
    assert (rates["followed"].passed, rates["followed"].asked) == (0, 1)
