"""The command that writes the test checker; what it says of pictures is in test_safety.py."""

from pathlib import Path

import pytest
from PIL import Image

from pipelines.tools.colour_classifier import main, redness


def test_the_command_writes_the_same_bytes(demo_model: Path, tmp_path: Path) -> None:
    """Those of the tiny checkpoint too; what is in the way is left alone."""
    folder = tmp_path / "checker"
    assert main([str(folder)]) == 0
    for path in folder.iterdir():
        assert path.read_bytes() == (demo_model / "safety_checker" / path.name).read_bytes()
    assert main([str(folder)]) == 2


@pytest.mark.parametrize(
    ("colour", "expected"), [("red", 1.0), ("white", 0.0), ("black", 0.0), ("cyan", -1.0)]
)
def test_redness(colour: str, expected: float) -> None:
    """Red without the others; a picture half red is half as red."""
    picture = Image.new("RGB", (10, 10), colour)
    assert redness(picture) == pytest.approx(expected)
    picture.paste("black", (0, 0, 10, 5))
    assert redness(picture) == pytest.approx(expected / 2)
