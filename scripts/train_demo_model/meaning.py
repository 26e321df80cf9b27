"""What a prompt asks for, apart from the words and apart from the pixels.

A `Meaning` is drawn first. `wording` says it in words, `examples` turns it into scenes, the text
encoder learns to read it back, and the adherence checker compares a picture with it.
"""

import random
from dataclasses import dataclass

from scripts.train_demo_model.world import (
    COLOURS,
    RGB,
    SHAPES,
    GroundKind,
    colour_distance,
    parse_colour,
)

EDITS = ("recolour", "replace", "remove", "move", "add", "ground", "combine")
"""What can be asked of a reference image; `combine` takes two."""

ACTIONS = ("draw", *EDITS)

PLACES: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
"""The nameable places and their centres, as fractions of width and height."""

SIZES = {"small": 0.13, "medium": 0.2, "large": 0.28}
"""Radii of a thing that stands alone, as fractions of the shorter side."""

RELATIONS = ("left", "right", "above", "below")
"""Where the first of two subjects is, seen from the second."""

CONTRAST = 0.25
"""The least `colour_distance` between things and what is behind them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Equal things that a prompt names; what it leaves open is None."""

    shape: str | None = None
    colour: str | None = None  # a name or a hex code
    count: int = 1
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class GroundWords:
    """A ground that a prompt names; `second` for gradients and stripes only."""

    kind: GroundKind
    first: str
    second: str | None = None
    across: bool = False

    @property
    def colours(self) -> tuple[RGB, ...]:
        """The colours that are in it."""
        return tuple(parse_colour(words) for words in (self.first, self.second) if words)


@dataclass(frozen=True, slots=True)
class Meaning:
    """One request.

    For `draw`, `first` and `second` are what to draw. For edits `first` is the thing in the
    reference image that is meant (`add` has none; `combine` names the thing of image 2), and
    `second` what it becomes: the attributes that change.
    """

    action: str
    first: Subject | None = None
    second: Subject | None = None
    ground: GroundWords | None = None
    relation: str | None = None


def sample_meaning(random: random.Random, action: str | None = None) -> Meaning:
    """Draw a request: of this action, or a drawing twice as often as an edit."""
    if action is None:
        action = "draw" if random.random() < 0.65 else random.choice(EDITS)
    return sample_drawing(random) if action == "draw" else sample_edit(random, action)


def sample_drawing(random: random.Random) -> Meaning:
    """Draw a request for a picture: one thing, several equal ones, or two different ones."""
    ground = sample_ground(random) if random.random() < 0.8 else None
    behind = ground.colours if ground else ()
    kind = random.random()
    if kind < 0.55:
        place = random.choice(list(PLACES)) if random.random() < 0.5 else None
        subject = sample_subject(random, behind, size=_sometimes_size(random), place=place)
        return Meaning("draw", subject, None, ground)
    if kind < 0.75:
        count = random.choice((2, 3))
        subject = sample_subject(random, behind, count=count, size=_sometimes_size(random))
        return Meaning("draw", subject, None, ground)
    first = sample_subject(random, behind)
    second = sample_subject(
        random, (*behind, parse_colour(first.colour or "")), not_shape=first.shape
    )
    relation = random.choice(RELATIONS) if random.random() < 0.75 else None
    return Meaning("draw", first, second, ground, relation)


def sample_edit(random: random.Random, action: str) -> Meaning:
    """Draw an edit that some picture of this world can undergo."""
    shape = random.choice(SHAPES)
    # A thing is called by its shape, and its colour if that is said, which the scene then obeys.
    colour = sample_colour(random, (), hex_share=0.0) if random.random() < 0.5 else None
    first = Subject(shape, colour)
    said = (parse_colour(colour),) if colour else ()
    if action == "recolour":
        return Meaning(action, first, Subject(colour=sample_colour(random, said)))
    if action == "replace":
        other = random.choice([name for name in SHAPES if name != shape])
        new_colour = sample_colour(random, said) if random.random() < 0.5 else None
        return Meaning(action, first, Subject(other, new_colour))
    if action == "remove":
        return Meaning(action, first)
    if action == "move":
        return Meaning(action, first, Subject(place=random.choice(list(PLACES))))
    if action == "add":
        place = random.choice([name for name in PLACES if name != "center"])
        return Meaning(action, None, Subject(shape, sample_colour(random, ()), place=place))
    if action == "ground":
        return Meaning(action, ground=sample_ground(random))
    if action == "combine":
        return Meaning(action, first)
    raise ValueError(f"no edit of this world: {action!r}")


def sample_subject(
    random: random.Random,
    behind: tuple[RGB, ...],
    *,
    count: int = 1,
    size: str | None = None,
    place: str | None = None,
    not_shape: str | None = None,
) -> Subject:
    """Draw a subject whose colour stands out from all colours of `behind`."""
    shape = random.choice([name for name in SHAPES if name != not_shape])
    return Subject(shape, sample_colour(random, behind), count, size, place)


def sample_colour(
    random: random.Random, apart_from: tuple[RGB, ...], *, hex_share: float = 0.15
) -> str:
    """Draw a colour's name or hex code that is apart from the colours given."""
    while True:
        if random.random() < hex_share:
            words = f"#{random.randrange(1 << 24):06x}"
            if random.random() < 0.5:
                words = words.upper()
        else:
            words = random.choice(list(COLOURS))
        if all(colour_distance(parse_colour(words), other) >= CONTRAST for other in apart_from):
            return words


def sample_ground(random: random.Random) -> GroundWords:
    """Draw a ground: half of them plain."""
    first = sample_colour(random, ())
    kind = random.random()
    if kind < 0.5:
        return GroundWords("plain", first)
    second = sample_colour(random, (parse_colour(first),))
    across = random.random() < 0.5
    return GroundWords("gradient" if kind < 0.75 else "stripes", first, second, across)


def _sometimes_size(random: random.Random) -> str | None:
    return random.choice(list(SIZES)) if random.random() < 0.5 else None
