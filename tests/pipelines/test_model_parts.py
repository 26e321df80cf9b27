"""What small FLUX.2 models share: a tokenizer that learns words, and folders that appear whole."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.tools.model_parts import build_processor, whole_folder


def _tokens(processor: Any, text: str) -> list[str]:
    tokenizer = processor.tokenizer
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


def test_words_of_the_extra_texts_become_short() -> None:
    """A word of the system messages' letters takes several tokens unless it was learnt."""
    plain, learnt = build_processor(), build_processor(["a heptagon"] * 9)
    assert len(_tokens(plain, "a heptagon")) > 3
    assert _tokens(learnt, "a heptagon") == ["a", "Ġheptagon"]
    assert len(build_processor(["a heptagon"], vocab_size=400).tokenizer) == 400


def test_each_character_of_a_hex_code_is_a_token() -> None:
    """Though the digits were seen together in training, and in codes that were not."""
    processor = build_processor(["a #a1B2c3 star", "a1B2c3 facade"] * 9)
    assert _tokens(processor, "a #a1B2c3 star") == ["a", "Ġ", *"#a1B2c3", "Ġstar"]
    assert _tokens(processor, "on #facade.") == ["on", "Ġ", *"#facade."]
    assert _tokens(processor, "a facade") == ["a", "Ġfacade"]
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer("on #00fF09.")["input_ids"]) == "on #00fF09."


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """What fails halfway leaves nothing, and what was there before is never overwritten."""
    folder = tmp_path / "new" / "model"
    with pytest.raises(ValueError, match="halfway"), whole_folder(folder) as unfinished:
        (unfinished / "part").touch()
        raise ValueError("halfway")
    assert list(folder.parent.iterdir()) == []
    with whole_folder(folder) as unfinished:
        (unfinished / "part").touch()
    with pytest.raises(OSError, match="not empty"), whole_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["part"]
    assert list(folder.parent.iterdir()) == [folder]
