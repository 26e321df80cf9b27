"""Chooses what is held out of training: a balanced set of prompts and edits, all answerable.

Run once, with `python -m scripts.train_demo_model.choose_heldout`; its result is in git.
"""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np

from scripts.train_demo_model.examples import Example, realise
from scripts.train_demo_model.heldout import (
    PATH,
    normalise,
    pack_meaning,
    pack_scene,
    unpack_scene,
)
from scripts.train_demo_model.meaning import (
    CONTRAST,
    EDITS,
    Meaning,
    sample_drawing,
    sample_edit,
)
from scripts.train_demo_model.wording import say
from scripts.train_demo_model.world import (
    COLOURS,
    RGB,
    Ground,
    Scene,
    colour_distance,
    draw,
    parse_colour,
)

_DRAWINGS, _EDITS = 200, 100
_SEED = 5
_CANDIDATES = 300  # from which each entry is chosen, so that all there is comes up about equally
_KINDS = ("single", "placed", "many", "two", "placed", "related", "many", "related")
_HEX_WEIGHT = 2.0  # hex codes among twelve names make about 15 % with twice a name's weight
_VISIBLE = 0.8 * CONTRAST  # between a thing and any colour of a gradient; and what an edit changes


def write_held_out(path: Path, seed: int) -> None:
    """Draw all entries anew. Doing so makes old figures incomparable with new ones."""
    source = random.Random(seed)
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    drawings = [
        {"caption": caption, "seed": source.randrange(1 << 31), "meaning": pack_meaning(meaning)}
        for meaning, caption in (
            _choose(source, seen, counts, _KINDS[index % len(_KINDS)]) for index in range(_DRAWINGS)
        )
    ]
    counts.clear()
    edits = []
    for index in range(_EDITS):
        action = EDITS[index % len(EDITS)]
        meaning, caption = _choose(source, seen, counts, action)
        example = _realise_visibly(meaning, source)
        edits.append(
            {
                "caption": caption,
                "seed": source.randrange(1 << 31),
                "meaning": pack_meaning(meaning),
                "references": [pack_scene(scene) for scene in example.references],
                "target": pack_scene(example.target),
            }
        )
    rows = {"drawings": drawings, "edits": edits}
    parts = (
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in entries) + "\n]"
        for name, entries in rows.items()
    )
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _choose(
    source: random.Random, seen: set[str], counts: Counter[str], kind: str
) -> tuple[Meaning, str]:
    """Draw some requests and take the one whose parts came up least so far."""
    best: tuple[float, Meaning, str] | None = None
    for _ in range(_CANDIDATES):
        meaning = sample_edit(source, kind) if kind in EDITS else sample_drawing(source)
        if _name_kind(meaning) != kind:
            continue
        caption = say(meaning, source)
        if normalise(caption) in seen or not is_answerable(meaning):
            continue
        features = _list_features(meaning)
        worth = sum(counts[name] / weight for name, weight in features) / max(len(features), 1)
        if best is None or worth < best[0]:
            best = (worth, meaning, caption)
    if best is None:
        raise RuntimeError("every request that was drawn has been taken already")
    _, meaning, caption = best
    seen.add(normalise(caption))
    counts.update(name for name, _ in _list_features(meaning))
    return meaning, caption


def _name_kind(meaning: Meaning) -> str:
    """Name an edit's action, or what sort of drawing is asked for."""
    if meaning.action != "draw" or meaning.first is None:
        return meaning.action
    if meaning.second:
        return "related" if meaning.relation else "two"
    if meaning.first.count > 1:
        return "many"
    return "placed" if meaning.first.place else "single"


def _list_features(meaning: Meaning) -> list[tuple[str, float]]:
    """Name what should come up equally often, with the weight that each name has."""
    names = []
    for subject in (meaning.first, meaning.second):
        if subject is None:
            continue
        names += [subject.shape or "", subject.size or "", f"{subject.count} things"]
        names += [f"at {subject.place}" if subject.place else "", _name_colour(subject.colour)]
    if meaning.ground:
        ground = meaning.ground
        names += [f"{ground.kind} {ground.across}", f"on {_name_colour(ground.first)}"]
    names += [f"relation {meaning.relation}" if meaning.relation else ""]
    return [
        (name, _HEX_WEIGHT if name.endswith("hex") else 1.0)
        for name in names
        if name not in ("", "1 things")
    ]


def _name_colour(words: str | None) -> str:
    return "hex" if words and words not in COLOURS else words or ""


def is_answerable(meaning: Meaning) -> bool:
    """Whether the things stand out from the ground wherever they are put."""
    if meaning.action != "draw" or meaning.ground is None:
        return True
    words = [s.colour for s in (meaning.first, meaning.second) if s and s.colour]
    ground = meaning.ground
    first, second = ground.colours[0], ground.colours[-1]
    mixtures = _list_mixtures(Ground(ground.kind, first, second))
    return all(_stands_out(parse_colour(word), mixtures) for word in words)


def _list_mixtures(ground: Ground) -> list[RGB]:
    """List the colours that are in a ground, for a gradient in eight steps."""
    if ground.kind != "gradient":
        return [ground.first, ground.second]
    steps = np.linspace(ground.first, ground.second, 9).round().astype(int).tolist()
    return [(red, green, blue) for red, green, blue in steps]


def _stands_out(colour: RGB, behind: list[RGB]) -> bool:
    return all(colour_distance(colour, other) >= _VISIBLE for other in behind)


def _realise_visibly(meaning: Meaning, source: random.Random) -> Example:
    """Draw scenes for an edit until all is easy to see: each thing, and what changes."""
    for _ in range(1000):
        packed = realise(meaning, 1.0, source)
        example = Example(
            meaning,
            tuple(unpack_scene(pack_scene(scene)) for scene in packed.references),
            unpack_scene(pack_scene(packed.target)),
        )
        if is_visible(example):
            return example
    raise RuntimeError(f"no scene shows this edit well: {meaning}")


def is_visible(example: Example) -> bool:
    """Whether each thing in the scenes, and what the edit changes, is easy to see."""
    for scene in (*example.references, example.target):
        mixtures = _list_mixtures(scene.ground)
        if not all(_stands_out(thing.colour, mixtures) for thing in scene.things):
            return False
    before, after = example.references[0], example.target
    if example.meaning.action == "ground":
        return _differ_visibly(before.ground, after.ground)
    if example.meaning.action == "recolour":
        pairs = zip(before.things, after.things, strict=True)
        return all(a == b or colour_distance(a.colour, b.colour) >= CONTRAST for a, b in pairs)
    if example.meaning.action == "combine":
        return _differ_visibly(before.ground, example.references[1].ground)
    return True


def _differ_visibly(first: Ground, second: Ground) -> bool:
    """Whether two grounds differ by a contrast's worth on average."""
    one, other = (
        np.asarray(draw(Scene(ground, ()), 16, 16)).reshape(-1, 3).tolist()
        for ground in (first, second)
    )
    apart = [colour_distance(tuple(a), tuple(b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean(apart)) >= _VISIBLE


if __name__ == "__main__":
    write_held_out(PATH, _SEED)
