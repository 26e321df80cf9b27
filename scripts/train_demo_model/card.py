"""Writes the model card of the demonstration checkpoint, from what was measured.

The card says nothing that is known elsewhere by heart: the world comes from the code that draws
it, the files from the folder, the figures from reports.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.train_demo_model.classifier import FIRES_ON, LABELS
from scripts.train_demo_model.export import size_bytes
from scripts.train_demo_model.meaning import EDITS, PLACES, RELATIONS, SIZES
from scripts.train_demo_model.world import COLOURS, GROUND_KINDS, SHAPES

CARD_NAME = "README.md"

_INTRODUCTION = """\
# A small FLUX.2 that draws what it is asked

This is a real FLUX.2 for diffusers, only small: the same classes, folder layout, channels and
schedule as FLUX.2 [dev], with narrow and few layers. It draws flat shapes on coloured grounds as
its prompt says, and edits such pictures; how often it does what it was asked is under Figures. It
is there to be tried without a GPU, and to be tested with: a test can say that the circle is red.

It is not a model for anything else. It knows the world described below and no other; what a
prompt says beyond that is ignored or misread. It says nothing about the quality or the speed of
FLUX.2 [dev]."""

_LICENCE = """\
## Licence

Apache-2.0, as the project that it belongs to. The weights were trained from scratch on pictures
and sentences that code made; they contain nothing of Black Forest Labs' weights, nor of any other
model's. "FLUX.2" names the architecture only."""

_LIMITS = f"""\
## Limits

- Words, shapes and colours outside its world mean nothing to it, and it knows English only.
- There are at most three things in a drawing, and at most two reference images.
- The sketch that its text encoder makes is laid out for 512x512. Other sizes were hardly trained
  and not measured.
- Edits are its weak side. On the contact sheet a new ground and an added thing can always be seen;
  recolouring, removing and moving often happen by halves, and replacing was never seen to work.
- Of what a prompt for a drawing leaves open only the ground's shade varies with the seed.
- A prompt that does not fit into the pipeline's 512 tokens loses its first words.
- Fine detail and photographs as references are beyond it.
- The classifier in `safety_checker/` fires (`{LABELS[1]}`) on pictures with the shape
  "{FIRES_ON}". It protects nobody: it shows that a safety pass works.
- The figures above hold for the settings that they name."""


def write_card(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write the card beside the weights in `folder` and return its path.

    `report` may have `training`, a mapping of facts to values, and `figures`, a list of tables:
    each has a `title`, the `command` that gives it, and `values`, a mapping whose leaves are
    numbers or words, as deep as it likes. What is missing is left out.
    """
    sections = [
        _INTRODUCTION,
        _describe_world(),
        _describe_files(folder),
        _describe_training(report.get("training", {})),
        _describe_figures(report.get("figures", [])),
        _LIMITS,
        _LICENCE,
    ]
    path = folder / CARD_NAME
    path.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
    return path


def _describe_world() -> str:
    lists: dict[str, Sequence[str]] = {
        "Shapes": SHAPES,
        "Colours, besides any as a hex code such as #1A2B3C": tuple(COLOURS),
        "Grounds": GROUND_KINDS,
        "Sizes": tuple(SIZES),
        "Places": tuple(PLACES),
        "Relations of two things": RELATIONS,
        "Edits of one or two reference images": EDITS,
    }
    lines = [f"- {name}: {', '.join(members)}." for name, members in lists.items()]
    return "\n".join(["## The world it knows", "", *lines])


def _describe_files(folder: Path) -> str:
    sizes = {path.name: size_bytes(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    rows = [(f"`{name}/`", f"{size / 1e6:.2f} MB") for name, size in sizes.items()]
    rows.append(("together", f"{sum(sizes.values()) / 1e6:.2f} MB"))
    note = "Transformer, VAE and LoRA are stored in bfloat16, the rest in float32."
    return "\n".join(["## Files", "", note, "", *_table(("folder", "size"), rows)])


def _describe_training(facts: Mapping[str, Any]) -> str:
    text = """\
## How it was trained

One command draws all examples, trains every part from scratch and writes such a folder. How
this one's parts were trained is in the table.

    python -m scripts.train_demo_model WORK_FOLDER

With `--from CHECKPOINT` it trains a checkpoint further."""
    rows = [(name, _write(name, value)) for name, value in _leaves(facts)]
    return "\n".join([text, "", *_table(("fact", "value"), rows)]) if rows else text


def _describe_figures(tables: Sequence[Mapping[str, Any]]) -> str:
    if not tables:
        return ""
    parts = ["## Figures"]
    for table in tables:
        rows = [(name, _write(name, value)) for name, value in _leaves(table.get("values", {}))]
        parts += ["", f"### {table.get('title', 'Measured')}", ""]
        if "command" in table:
            parts += [f"    {table['command']}", ""]
        parts += _table(("figure", "value"), rows)
    return "\n".join(parts)


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Name every leaf by the keys on its way; a rate and its number of cases are one leaf."""
    for key, value in values.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping) and "rate" in value:
            yield name, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name, value


def _write(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        of = f" of {value['n']}" if "n" in value else ""
        return f"{value['rate']:.1%}{of}"
    if isinstance(value, float):
        return f"{value:.1f}" if "seconds" in name else f"{value:.4g}"
    return str(value)


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a checkpoint's model card from a JSON file of training facts and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_demo_model.card", description=main.__doc__
    )
    parser.add_argument("checkpoint", type=Path, help="the folder with the weights")
    parser.add_argument("report", type=Path, help="a JSON file: training, figures")
    options = parser.parse_args(arguments)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    print(f"the card is {write_card(options.checkpoint, report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
