"""The model card: it tells the world that the code has, and the figures that it was given."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.train_demo_model.card import main, write_card
from scripts.train_demo_model.meaning import EDITS, PLACES, RELATIONS, SIZES
from scripts.train_demo_model.world import COLOURS, GROUND_KINDS, SHAPES

REPORT: dict[str, Any] = {
    "training": {"recipe": "cpu", "seed": 3, "hours": 2.25, "steps": {"vae": 1000}},
    "figures": [
        {
            "title": "28 steps at 512x512",
            "command": "python -m scripts.train_demo_model.evaluate FOLDER",
            "values": {
                "drawings": {"object_colour": {"rate": 0.975, "n": 200}},
                "edits": {"followed": {"rate": 0.81, "n": 100}, "untouched_error": {"max": 0.0312}},
                "seconds": 17.26,
            },
        }
    ],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with a few bytes of weights."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").write_bytes(bytes(1_230_000))
    return tmp_path


def test_the_card_has_every_figure_and_the_command_that_gives_it(checkpoint: Path) -> None:
    """Rates are told in percent with the number of cases; other numbers as they are."""
    card = write_card(checkpoint, REPORT).read_text(encoding="utf-8")
    for line in (
        "### 28 steps at 512x512",
        "    python -m scripts.train_demo_model.evaluate FOLDER",
        "| drawings object colour | 97.5% of 200 |",
        "| edits followed | 81.0% of 100 |",
        "| edits untouched error max | 0.0312 |",
        "| seconds | 17.3 |",
        "| recipe | cpu |",
        "| steps vae | 1000 |",
        "| hours | 2.25 |",
        "| `vae/` | 1.23 MB |",
    ):
        assert line in card.splitlines()


@pytest.mark.parametrize(
    "members", [SHAPES, COLOURS, GROUND_KINDS, SIZES, PLACES, RELATIONS, EDITS], ids=str
)
def test_the_card_lists_the_world(checkpoint: Path, members: Any) -> None:
    """Each list stands there whole, in the order of the code."""
    card = write_card(checkpoint, {}).read_text(encoding="utf-8")
    assert f": {', '.join(members)}.\n" in card


def test_what_was_not_measured_is_left_out(checkpoint: Path) -> None:
    """Without figures there is no section of figures, and the other sections are there."""
    card = write_card(checkpoint, {}).read_text(encoding="utf-8")
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert titles == [
        "## The world it knows",
        "## Files",
        "## How it was trained",
        "## Limits",
        "## Licence",
    ]


def test_the_command_writes_the_card_of_a_report_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where the card is."""
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT), encoding="utf-8")
    assert main([str(checkpoint), str(report)]) == 0
    assert capsys.readouterr().out == f"the card is {checkpoint / 'README.md'}\n"
    assert "97.5% of 200" in (checkpoint / "README.md").read_text(encoding="utf-8")
