"""What a checkpoint says of itself."""

from pathlib import Path

import pytest

from pipelines.declaration import DECLARATION_NAME, Declaration, read_declaration
from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.errors import ModelNotFoundError


def test_the_demonstration_checkpoint_cannot_write(demo_model: Path) -> None:
    """It says so; the tiny one says nothing and is taken to be able, as the real one is."""
    assert not read_declaration(DEMO_CHECKPOINT).expander
    assert not (demo_model / DECLARATION_NAME).exists()
    assert read_declaration(demo_model) == Declaration(expander=True)


@pytest.mark.parametrize("text", ["{}", '{"expander": true}'])
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    """A checkpoint need not say what is usual."""
    (tmp_path / DECLARATION_NAME).write_text(text, encoding="utf-8")
    assert read_declaration(tmp_path).expander


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"expandr": false}', "expandr Extra inputs are not permitted"),
        ('{"expander": "no"}', "expander Input should be a valid boolean"),
        ('{"expander": 0}', "expander Input should be a valid boolean"),
        ("[]", "Input should be an object"),
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_a_wrong_spelling_is_not_passed_over(tmp_path: Path, text: str, told: str) -> None:
    """The file is named, and what is wrong in it."""
    path = tmp_path / DECLARATION_NAME
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=told) as caught:
        read_declaration(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """It is there, so its word counts, and nobody may guess it."""
    (tmp_path / DECLARATION_NAME).mkdir()
    with pytest.raises(ModelNotFoundError, match="cannot be read: Is a directory"):
        read_declaration(tmp_path)
