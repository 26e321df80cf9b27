"""Says a `Meaning` in words: short and long, plain and chatty, as people write prompts."""

import random

from scripts.train_demo_model.meaning import GroundWords, Meaning, Subject

_SHAPES = {
    "circle": ("circle", "circle", "circle", "disc", "dot"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "heart shape"),
    "ring": ("ring", "ring", "donut"),
    "arrow": ("arrow", "arrow", "arrow pointing right"),
}
_COLOURS = {"gray": ("gray", "grey"), "purple": ("purple", "purple", "violet")}
_SIZES = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
_COUNTS = {2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3")}
_OPENINGS = (
    *("", "", "", "", "a picture of ", "an image of ", "a drawing of ", "draw ", "show me "),
    *("a simple illustration of ", "a flat graphic of ", "an icon of ", "a poster with "),
)
_ENDINGS = (
    *("", "", "", "", ", flat design", ", minimal style", ", clean edges, vector art"),
    *(", high quality", ", simple geometric shapes", ", crisp and colourful, digital art"),
)
_RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_RELATION_PLACES = {
    "left": ("left", "right"),
    "right": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def say(meaning: Meaning, random: random.Random) -> str:
    """Word the request; the same meaning gets many wordings."""
    words = (
        _say_drawing(meaning, random) if meaning.action == "draw" else _say_edit(meaning, random)
    )
    if random.random() < 0.5:
        words = words[0].upper() + words[1:]
    return words + ("." if random.random() < 0.3 else "")


def _say_drawing(meaning: Meaning, random: random.Random) -> str:
    first, second = meaning.first, meaning.second
    assert first is not None
    if second is None:
        subject = _say_subject(first, random)
        place = _say_place(first.place, random) if first.place else ""
        middle = f"{subject} {place}".strip()
    else:
        middle = _say_two(first, second, meaning.relation, random)
    opening, ending = random.choice(_OPENINGS), random.choice(_ENDINGS)
    if not meaning.ground:
        return opening + middle + ending
    ground = _say_ground(meaning.ground, random)
    if random.random() < 0.15:
        return f"{_say_background(meaning.ground, random)} with {middle}{ending}"
    return f"{opening}{middle} {ground}{ending}"


def _say_two(first: Subject, second: Subject, relation: str | None, random: random.Random) -> str:
    one, other = _say_subject(first, random), _say_subject(second, random)
    if relation is None:
        return f"{one} {random.choice(('and', 'and', 'next to', 'with', 'beside'))} {other}"
    if random.random() < 0.5:
        return f"{one} {random.choice(_RELATIONS[relation])} {other}"
    here, there = (_say_place(place, random) for place in _RELATION_PLACES[relation])
    return f"{one} {here} {random.choice(('and', 'with'))} {other} {there}"


def _say_edit(meaning: Meaning, random: random.Random) -> str:
    first, second = meaning.first, meaning.second
    thing = f"the {_adjectives(first, random)}" if first else ""
    if meaning.action == "recolour":
        assert second is not None
        assert second.colour is not None
        colour = _say_colour(second.colour, random)
        return random.choice(
            (
                f"make {thing} {colour}",
                f"change the color of {thing} to {colour}",
                f"turn {thing} {colour}",
                f"recolor {thing} to {colour}",
                f"paint {thing} {colour}",
            )
        )
    if meaning.action == "replace":
        assert second
        new = _say_subject(second, random)
        return random.choice(
            (
                f"replace {thing} with {new}",
                f"turn {thing} into {new}",
                f"change {thing} to {new}",
                f"swap {thing} for {new}",
            )
        )
    if meaning.action == "remove":
        return random.choice(
            (
                f"remove {thing}",
                f"delete {thing}",
                f"erase {thing} from the picture",
                f"take {thing} away",
            )
        )
    if meaning.action == "move":
        assert second is not None
        assert second.place is not None
        return (
            f"{random.choice(('move', 'put', 'shift'))} {thing} {_say_goal(second.place, random)}"
        )
    if meaning.action == "add":
        assert second is not None
        assert second.place is not None
        new = _say_subject(second, random)
        return f"{random.choice(('add', 'put', 'draw'))} {new} {_say_place(second.place, random)}"
    if meaning.action == "ground":
        assert meaning.ground
        ground = _say_background(meaning.ground, random)
        return random.choice(
            (
                f"change the background to {ground}",
                f"replace the background with {ground}",
                f"make it {ground}",
                f"use {ground}",
            )
        )
    return random.choice(
        (
            f"put {thing} from image 2 into image 1",
            f"add {thing} of image 2 to image 1",
            f"copy {thing} from the second image into the first image",
            f"insert {thing} from image 2 into image 1",
        )
    )


def _adjectives(subject: Subject, random: random.Random) -> str:
    assert subject.shape
    colour = f"{_say_colour(subject.colour, random)} " if subject.colour else ""
    return colour + random.choice(_SHAPES[subject.shape])


def _say_subject(subject: Subject, random: random.Random) -> str:
    words = _adjectives(subject, random)
    if subject.size:
        words = f"{random.choice(_SIZES[subject.size])} {words}"
    if subject.count > 1:
        return f"{random.choice(_COUNTS[subject.count])} {_plural(words)}"
    if random.random() < 0.08:
        return words
    if random.random() < 0.08:
        return f"one {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(words: str) -> str:
    if words.endswith(" pointing right"):
        return words.replace("arrow pointing", "arrows pointing")
    return words + "s"


def _say_colour(words: str, random: random.Random) -> str:
    return random.choice(_COLOURS.get(words, (words,)))


def _say_place(place: str, random: random.Random) -> str:
    if place == "center":
        return random.choice(("in the center", "in the middle", "in the centre", "centered"))
    if place in ("left", "right"):
        return random.choice((f"on the {place}", f"on the {place} side", f"at the {place}"))
    if place in ("top", "bottom"):
        return random.choice((f"at the {place}", f"near the {place}", f"at the {place} edge"))
    return _say_corner(place, random)


def _say_goal(place: str, random: random.Random) -> str:
    if place == "center":
        return random.choice(("to the center", "into the middle", "to the middle"))
    if place in ("left", "right", "top", "bottom"):
        return random.choice((f"to the {place}", f"to the {place} side"))
    return "to" + _say_corner(place, random)[2:]


def _say_corner(place: str, random: random.Random) -> str:
    if random.random() < 0.4:
        place = place.replace("top", "upper").replace("bottom", "lower")
    return f"in the {place}" + random.choice((" corner", " corner", ""))


def _say_ground(ground: GroundWords, random: random.Random) -> str:
    first = _say_colour(ground.first, random)
    if ground.kind == "plain" and random.random() < 0.25:
        return f"on {first}"
    start = random.choice(("on", "on", "against", "over"))
    return f"{start} {_say_background(ground, random)}"


def _say_background(ground: GroundWords, random: random.Random) -> str:
    noun = random.choice(("background", "background", "backdrop", "ground"))
    first = _say_colour(ground.first, random)
    if ground.kind == "plain":
        plain = random.choice(("", "", "plain ", "solid "))
        words = f"{plain}{first} {noun}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    second = _say_colour(ground.second or "", random)
    if ground.kind == "stripes":
        kind = "vertical" if ground.across else "horizontal"
        return random.choice(
            (
                f"a {noun} of {kind} {first} and {second} stripes",
                f"{kind} stripes of {first} and {second}",
                f"a {first} and {second} striped {noun} with {kind} stripes",
            )
        )
    start, end = ("left", "right") if ground.across else ("top", "bottom")
    return random.choice(
        (
            f"a gradient from {first} at the {start} to {second} at the {end}",
            f"a {noun} fading from {first} on the {start} to {second} on the {end}",
            f"a {start} to {end} gradient {noun} from {first} to {second}",
        )
    )
