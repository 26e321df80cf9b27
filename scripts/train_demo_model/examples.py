"""Turns a `Meaning` into scenes: what the references show, and what the answer should show."""

import random
from dataclasses import dataclass, replace

from scripts.train_demo_model.meaning import (
    CONTRAST,
    PLACES,
    SIZES,
    GroundWords,
    Meaning,
    Subject,
    sample_colour,
    sample_ground,
)
from scripts.train_demo_model.world import (
    SHAPES,
    Ground,
    Scene,
    Thing,
    colour_distance,
    fit,
    parse_colour,
)

_GRAY = Ground("plain", (128, 128, 128), (128, 128, 128))


@dataclass(frozen=True, slots=True)
class Example:
    """One request with its pictures: references (none for a drawing) and the exact answer."""

    meaning: Meaning
    references: tuple[Scene, ...]
    target: Scene


def realise(meaning: Meaning, aspect: float, random: random.Random) -> Example:
    """Draw an example of the request for pictures of `aspect` = width / height.

    Of what a drawing's request leaves open only the ground's shade differs from call to call. A
    small model learns in an hour where a thing goes, but in no such time to agree with itself on
    a place or size that it may choose.
    """
    if meaning.action == "draw":
        return Example(meaning, (), _realise_drawing(meaning, aspect, random))
    return _realise_edit(meaning, aspect, random)


def sketch(meaning: Meaning, random: random.Random) -> Scene:
    """Lay out what the words of a request say: all of a drawing, of an edit what it puts where.

    The rest is gray. Made for square pictures.
    """
    becomes = meaning.second
    if meaning.action == "draw":
        return _realise_drawing(meaning, 1.0, random)
    if meaning.ground:
        return Scene(make_ground(meaning.ground), ())
    if becomes and becomes.place:
        shape = becomes.shape or (meaning.first.shape if meaning.first else None)
        colour = becomes.colour or (meaning.first.colour if meaning.first else None)
        subject = Subject(shape, colour or "white")
        thing = _place(subject, PLACES[becomes.place], 0.8, 1.0)
        return Scene(_GRAY, (thing,))
    colour = becomes.colour if becomes else None
    return Scene(make_ground(GroundWords("plain", colour)) if colour else _GRAY, ())


def make_ground(words: GroundWords) -> Ground:
    """Turn words for a ground into the ground."""
    first = parse_colour(words.first)
    second = parse_colour(words.second) if words.second else first
    return Ground(words.kind, first, second, words.across)


def _realise_drawing(meaning: Meaning, aspect: float, random: random.Random) -> Scene:
    first, second = meaning.first, meaning.second
    assert first is not None
    if second is not None:
        things = _place_two(first, second, meaning.relation, aspect)
    elif first.count > 1:
        things = _place_many(first, aspect)
    else:
        centre = PLACES[first.place or "center"]
        things = (_place(first, centre, 1.0, aspect),)
    ground = make_ground(meaning.ground) if meaning.ground else _open_ground(things, random)
    return Scene(ground, things)


def _place(subject: Subject, centre: tuple[float, float], scale: float, aspect: float) -> Thing:
    radius = scale * SIZES[subject.size or "medium"]
    x, y = fit(*centre, radius, aspect)
    return Thing(subject.shape or "", parse_colour(subject.colour or ""), x, y, radius)


def _place_two(
    first: Subject, second: Subject, relation: str | None, aspect: float
) -> tuple[Thing, ...]:
    centres = {
        "left": ((0.27, 0.5), (0.73, 0.5)),
        "right": ((0.73, 0.5), (0.27, 0.5)),
        "above": ((0.5, 0.27), (0.5, 0.73)),
        "below": ((0.5, 0.73), (0.5, 0.27)),
    }[relation or "left"]
    return tuple(
        _place(subject, centre, 0.88, aspect)
        for subject, centre in zip((first, second), centres, strict=True)
    )


def _place_many(subject: Subject, aspect: float) -> tuple[Thing, ...]:
    if subject.count == 2:
        centres, scale = [(0.28, 0.5), (0.72, 0.5)], 0.68
    else:
        centres, scale = [(0.5, 0.27), (0.27, 0.72), (0.73, 0.72)], 0.58
    return tuple(_place(subject, centre, scale, aspect) for centre in centres)


def _open_ground(things: tuple[Thing, ...], random: random.Random) -> Ground:
    """Choose a ground that was not asked for: pale, or where that hides a thing, dark."""
    for low, high in ((225, 250), (25, 50), (100, 125)):
        shade = random.randint(low, high)
        red, green, blue = (shade + random.randint(-4, 4) for _ in range(3))
        if all(colour_distance((red, green, blue), t.colour) >= CONTRAST for t in things):
            break
    return Ground("plain", (red, green, blue), (red, green, blue))


def _realise_edit(meaning: Meaning, aspect: float, random: random.Random) -> Example:
    """Draw pictures until one allows the edit: what changes must be seen, and nothing hidden."""
    while True:
        before = _scene_before(meaning, aspect, random)
        if meaning.action == "combine":
            donor = _donor_scene(meaning, aspect, random)
            after = replace(before, things=(*before.things, donor.things[0]))
            references: tuple[Scene, ...] = (before, donor)
        else:
            after = _apply(meaning, before, aspect)
            references = (before,)
        if after != before and _is_clear(after, aspect):
            return Example(meaning, references, after)


def _scene_before(meaning: Meaning, aspect: float, random: random.Random) -> Scene:
    ground_words = sample_ground(random)
    behind = list(ground_words.colours)
    becomes = meaning.second.colour if meaning.second else None
    if becomes and all(colour_distance(parse_colour(becomes), c) < CONTRAST for c in behind):
        behind.append(parse_colour(becomes))
    first = meaning.first if meaning.action not in ("combine", "add") else None
    shapes = [first.shape] if first and first.shape else [random.choice(SHAPES)]
    if random.random() < 0.4:
        taken = {*shapes, meaning.second.shape if meaning.second else None}
        shapes.append(random.choice([name for name in SHAPES if name not in taken]))
    spots = random.sample(list(PLACES.values()), len(shapes))
    things = []
    for index, (shape, spot) in enumerate(zip(shapes, spots, strict=True)):
        said = first.colour if first and index == 0 else None
        colour = said or sample_colour(random, tuple(behind))
        subject = Subject(shape, colour, size=random.choice(("small", "medium")))
        things.append(_place(subject, spot, 1.0, aspect))
        behind.append(parse_colour(colour))
    return Scene(make_ground(ground_words), tuple(things))


def _donor_scene(meaning: Meaning, aspect: float, random: random.Random) -> Scene:
    first = meaning.first
    assert first is not None
    subject = replace(
        first,
        colour=first.colour or sample_colour(random, ()),
        size=random.choice(("small", "medium")),
    )
    thing = _place(subject, random.choice(list(PLACES.values())), 1.0, aspect)
    return Scene(_open_ground((thing,), random), (thing,))


def _apply(meaning: Meaning, before: Scene, aspect: float) -> Scene:
    first, *others = before.things
    becomes = meaning.second
    if meaning.action == "ground":
        assert meaning.ground
        return replace(before, ground=make_ground(meaning.ground))
    if meaning.action == "remove":
        return replace(before, things=tuple(others))
    assert becomes is not None
    if meaning.action == "add":
        new = _place(becomes, PLACES[becomes.place or "center"], 0.8, aspect)
        return replace(before, things=(*before.things, new))
    if meaning.action == "move":
        x, y = fit(*PLACES[becomes.place or "center"], first.radius, aspect)
        if abs(x - first.x) + abs(y - first.y) < 0.15:
            return before
        return replace(before, things=(replace(first, x=x, y=y), *others))
    colour = parse_colour(becomes.colour) if becomes.colour else first.colour
    changed = replace(first, colour=colour, shape=becomes.shape or first.shape)
    return replace(before, things=(changed, *others))


def _is_clear(scene: Scene, aspect: float) -> bool:
    """Whether every thing stands out from the ground and none covers another."""
    behind = {scene.ground.first, scene.ground.second}
    for index, thing in enumerate(scene.things):
        if any(colour_distance(thing.colour, colour) < CONTRAST for colour in behind):
            return False
        for other in scene.things[:index]:
            across = (thing.x - other.x) * max(1.0, aspect)
            along = (thing.y - other.y) * max(1.0, 1 / aspect)
            if (across**2 + along**2) ** 0.5 < thing.radius + other.radius + 0.02:
                return False
    return True
