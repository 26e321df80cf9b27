"""The prompts and edits that training never sees, and on which adherence is measured.

They were drawn once and are kept in `heldout.json`, wording, seeds and scenes included, so that
figures stay comparable when the code that draws prompts changes.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.train_demo_model.examples import Example
from scripts.train_demo_model.meaning import GroundWords, Meaning, Subject
from scripts.train_demo_model.world import RGB, Ground, Scene, Thing, parse_colour

PATH = Path(__file__).with_name("heldout.json")


@dataclass(frozen=True, slots=True)
class HeldDrawing:
    """A prompt for a picture, and the seed to draw it with."""

    caption: str
    seed: int
    meaning: Meaning


@dataclass(frozen=True, slots=True)
class HeldEdit:
    """An edit with its scenes, which were made for square pictures and fit wider ones too."""

    caption: str
    seed: int
    example: Example


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Everything that is held out of training."""

    drawings: tuple[HeldDrawing, ...]
    edits: tuple[HeldEdit, ...]


@functools.cache
def load_held_out(path: Path = PATH) -> HeldOut:
    """Read the held-out prompts and edits."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return HeldOut(
        tuple(
            HeldDrawing(row["caption"], row["seed"], _unpack_meaning(row["meaning"]))
            for row in stored["drawings"]
        ),
        tuple(
            HeldEdit(row["caption"], row["seed"], _unpack_example(row)) for row in stored["edits"]
        ),
    )


def is_held_out(caption: str) -> bool:
    """Whether training must skip this caption, whatever its case and final period."""
    return normalise(caption) in _held_captions()


@functools.cache
def _held_captions() -> frozenset[str]:
    held = load_held_out()
    captions = [entry.caption for entry in held.drawings]
    captions += [entry.caption for entry in held.edits]
    return frozenset(normalise(caption) for caption in captions)


def normalise(caption: str) -> str:
    """Bring captions that differ in case or final period only to the same form."""
    return caption.strip().removesuffix(".").casefold()


def pack_meaning(meaning: Meaning) -> dict[str, Any]:
    """Turn a request into JSON, without what has its default."""
    packed: dict[str, Any] = {"action": meaning.action}
    parts: tuple[tuple[str, Subject | GroundWords | None], ...] = (
        ("first", meaning.first),
        ("second", meaning.second),
        ("ground", meaning.ground),
    )
    for name, part in parts:
        if part is not None:
            packed[name] = {
                key: entry
                for key, entry in asdict(part).items()
                if entry is not None and entry is not False and (key, entry) != ("count", 1)
            }
    if meaning.relation:
        packed["relation"] = meaning.relation
    return packed


def _unpack_meaning(packed: dict[str, Any]) -> Meaning:
    return Meaning(
        packed["action"],
        Subject(**packed["first"]) if "first" in packed else None,
        Subject(**packed["second"]) if "second" in packed else None,
        GroundWords(**packed["ground"]) if "ground" in packed else None,
        packed.get("relation"),
    )


def _unpack_example(row: dict[str, Any]) -> Example:
    return Example(
        _unpack_meaning(row["meaning"]),
        tuple(unpack_scene(scene) for scene in row["references"]),
        unpack_scene(row["target"]),
    )


def pack_scene(scene: Scene) -> list[Any]:
    """Turn a scene into JSON: its ground, then its things, each a row of values."""
    ground = scene.ground
    rows: list[Any] = [[ground.kind, _to_hex(ground.first), _to_hex(ground.second), ground.across]]
    rows += [
        [t.shape, _to_hex(t.colour), round(t.x, 4), round(t.y, 4), round(t.radius, 4)]
        for t in scene.things
    ]
    return rows


def unpack_scene(rows: list[Any]) -> Scene:
    """Turn what `pack_scene` made into the scene again."""
    (kind, first, second, across), *things = rows
    return Scene(
        Ground(kind, parse_colour(first), parse_colour(second), across),
        tuple(Thing(shape, parse_colour(colour), x, y, r) for shape, colour, x, y, r in things),
    )


def _to_hex(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
