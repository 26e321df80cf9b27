"""Draws a contact sheet: numbered pictures, each over its endpoint, its seconds and its prompt."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 3
_CELL_PIXELS, _GAP_PIXELS = 384, 24
_TITLE_PIXELS, _TEXT_PIXELS, _LEADING = 20, 17, 1.3
_PROMPT_LINES, _PROMPT_CHARACTERS = 3, 44
_CAPTION_PIXELS = round((_TITLE_PIXELS + (1 + _PROMPT_LINES) * _TEXT_PIXELS) * _LEADING)
_PAPER, _INK, _QUIET = "white", "#202020", "#707070"


@dataclass(frozen=True, slots=True)
class Answer:
    """One picture and what it answers.

    `seconds` are the server's own, without waiting and loading; `edits` are the places, from 0, of
    the answers that it was made from.
    """

    endpoint: str
    prompt: str
    picture: Image.Image
    seconds: float
    edits: tuple[int, ...] = ()


def draw_sheet(answers: Sequence[Answer], path: Path) -> None:
    """Draw the answers in rows of three and save the sheet as PNG."""
    rows = -(-len(answers) // _COLUMNS)
    across = _CELL_PIXELS + _GAP_PIXELS
    down = _CELL_PIXELS + _CAPTION_PIXELS + _GAP_PIXELS
    size = (_COLUMNS * across + _GAP_PIXELS, rows * down + _GAP_PIXELS)
    sheet = Image.new("RGB", size, _PAPER)
    for index, answer in enumerate(answers):
        row, column = divmod(index, _COLUMNS)
        corner = (_GAP_PIXELS + column * across, _GAP_PIXELS + row * down)
        _draw_cell(sheet, corner, index + 1, answer)
    sheet.save(path)


def _draw_cell(sheet: Image.Image, corner: tuple[int, int], number: int, answer: Answer) -> None:
    left, top = corner
    picture = answer.picture.copy()
    picture.thumbnail((_CELL_PIXELS, _CELL_PIXELS), Image.Resampling.LANCZOS)
    inset = (_CELL_PIXELS - picture.width) // 2, (_CELL_PIXELS - picture.height) // 2
    box = (left + inset[0], top + inset[1])
    sheet.paste(picture, box)
    pen = ImageDraw.Draw(sheet)
    # A picture on a white ground needs an edge on white paper.
    edge = (box[0] - 1, box[1] - 1, box[0] + picture.width, box[1] + picture.height)
    pen.rectangle(edge, outline=_QUIET)
    lines = textwrap.wrap(
        answer.prompt, _PROMPT_CHARACTERS, max_lines=_PROMPT_LINES, placeholder=" ..."
    )
    details = f"{answer.picture.width}x{answer.picture.height}, {answer.seconds:.1f} s"
    if answer.edits:
        details += ", from " + " and ".join(f"picture {place + 1}" for place in answer.edits)
    y = float(top + _CELL_PIXELS + 6)
    for text, pixels, colour in (
        (f"{number}  {answer.endpoint}", _TITLE_PIXELS, _INK),
        (details, _TEXT_PIXELS, _QUIET),
        *((line, _TEXT_PIXELS, _INK) for line in lines),
    ):
        pen.text((left, y), text, fill=colour, font=ImageFont.load_default(pixels))
        y += pixels * _LEADING
