"""Shows an evaluation: a table for the terminal, a JSON file, and a contact sheet."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scripts.train_demo_model.adherence import EditScores
from scripts.train_demo_model.drawing import (
    Outcome,
    Settings,
    list_untouched_errors,
    measure_seconds,
    summarise_outcomes,
)

_THUMB = 128  # pixels: the longer side of a picture on the sheet
_TEXT = 68  # pixels of caption and marks under it
_COLUMNS = 10  # pictures in a row; a reference image takes a place of its own
_PASSED, _FAILED = (20, 120, 50), (200, 30, 30)


def format_report(outcomes: Sequence[Outcome]) -> str:
    """Make the table that the command prints."""
    lines = [f"{'asked for':<16}{'passed':>8}{'of':>6}{'rate':>9}"]
    for name, rate in summarise_outcomes(outcomes).items():
        lines.append(f"{name:<16}{rate.passed:>8}{rate.asked:>6}{rate.rate:>9.1%}")
    errors = list_untouched_errors(outcomes)
    if errors:
        mean = sum(errors) / len(errors)
        lines.append(f"untouched pixels' error: mean {mean:.4f}, worst {max(errors):.4f}")
    if outcomes:
        lines.append(f"seconds per picture: median {measure_seconds(outcomes):.2f}")
    return "\n".join(lines)


def write_report(path: Path, outcomes: Sequence[Outcome], settings: Settings) -> None:
    """Write everything but the pictures, as JSON."""
    errors = list_untouched_errors(outcomes)
    report = {
        "settings": dataclasses.asdict(settings),
        "rates": {
            name: {"passed": rate.passed, "asked": rate.asked, "rate": round(rate.rate, 4)}
            for name, rate in summarise_outcomes(outcomes).items()
        },
        "untouched_error": {"mean": sum(errors) / len(errors), "max": max(errors)}
        if errors
        else None,
        "seconds_per_picture": measure_seconds(outcomes) if outcomes else None,
        "pictures": [
            {
                "caption": outcome.entry.caption,
                "seed": outcome.entry.seed,
                "seconds": round(outcome.seconds, 2),
                **dataclasses.asdict(outcome.scores),
            }
            for outcome in outcomes
        ],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def draw_sheet(outcomes: Sequence[Outcome]) -> Image.Image:
    """Draw the contact sheet: references, picture, caption, and what passed and failed."""
    cells = _place_cells([1 + len(outcome.references) for outcome in outcomes])
    rows = 1 + max((row for row, _ in cells), default=0)
    sheet = Image.new("RGB", (_COLUMNS * _THUMB, rows * (_THUMB + _TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    for outcome, (row, column) in zip(outcomes, cells, strict=True):
        left, top = column * _THUMB, row * (_THUMB + _TEXT)
        pictures = (*outcome.references, outcome.picture)
        for index, picture in enumerate(pictures):
            small = picture.copy()
            small.thumbnail((_THUMB - 4, _THUMB - 4))
            sheet.paste(small, (left + index * _THUMB + 2, top + 2))
        _write_under(pen, outcome, left + 2, top + _THUMB, len(pictures))
    return sheet


def _place_cells(widths: list[int]) -> list[tuple[int, int]]:
    """Give each outcome its row and first column, so that none is broken over two rows."""
    cells = []
    row, column = 0, 0
    for width in widths:
        if column + width > _COLUMNS:
            row, column = row + 1, 0
        cells.append((row, column))
        column += width
    return cells


def _write_under(
    pen: ImageDraw.ImageDraw, outcome: Outcome, left: int, top: int, width: int
) -> None:
    font = ImageFont.load_default(9)
    lines = textwrap.wrap(outcome.entry.caption, 26 * width)[:5]
    pen.multiline_text((left, top), "\n".join(lines), "black", font, spacing=1)
    for name, verdict in _list_marks(outcome):
        colour = _PASSED if verdict else _FAILED
        text = f"{name}{'+' if verdict else '-'}"
        pen.text((left, top + _TEXT - 13), text, colour, font)
        left += round(pen.textlength(text, font)) + 4


def _list_marks(outcome: Outcome) -> list[tuple[str, bool]]:
    """Name the verdicts in short; what was not asked for has none."""
    if isinstance(outcome.scores, EditScores):
        error = f"followed, error {outcome.scores.untouched_error:.3f} "
        return [(error, outcome.scores.followed)]
    names = {
        "object_colour": "col",
        "ground_colour": "gnd",
        "shape": "shp",
        "position": "pos",
        "count": "n",
    }
    verdicts = dataclasses.asdict(outcome.scores)
    return [(names[key], value) for key, value in verdicts.items() if value is not None]
