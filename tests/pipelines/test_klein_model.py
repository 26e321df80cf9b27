"""The tiny klein: its files, and what is real about them."""

import json
from pathlib import Path

import pytest
import transformers

from pipelines.tools.demo_model import MANIFEST_NAME, main, write_demo_model
from pipelines.types import Model

FILES = {
    "demo_model.json",
    "model_index.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    "text_encoder/model.safetensors",
    "tokenizer/chat_template.jinja",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file's content by its name in the folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_folder_has_the_real_layout(klein_model: Path) -> None:
    """And no embedding of guidance, which no klein has."""
    files = files_of(klein_model)
    assert set(files) == FILES
    assert sum(map(len, files.values())) < 6_000_000
    assert json.loads(files["transformer/config.json"])["guidance_embeds"] is False
    index = json.loads(files["model_index.json"])
    assert index["text_encoder"] == ["transformers", "Qwen3ForCausalLM"]


def test_base_and_distilled_differ_in_the_index_alone(klein_model: Path, tmp_path: Path) -> None:
    """So that a difference of pictures is one of guidance."""
    write_demo_model(tmp_path / "base", model=Model.KLEIN_4B_BASE)
    ours, others = files_of(klein_model), files_of(tmp_path / "base")
    assert {name for name in FILES if ours[name] != others[name]} == {
        "model_index.json",
        MANIFEST_NAME,
    }
    told = [json.loads(files["model_index.json"])["is_distilled"] for files in (ours, others)]
    assert told == [True, False]


def test_prompts_are_asked_without_thinking(klein_model: Path) -> None:
    """The template has Qwen3's switch, and padding follows the words, as its tokenizer has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(klein_model / "tokenizer")
    turn = [{"role": "user", "content": "a boat ⛵"}]
    plain, quick = (
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **more)
        for more in ({}, {"enable_thinking": False})
    )
    assert plain == "<|im_start|>user\na boat ⛵<|im_end|>\n<|im_start|>assistant\n"
    assert quick == plain + "<think>\n\n</think>\n\n"
    tokens = tokenizer(quick, padding="max_length", max_length=64)
    assert tokenizer.decode(tokens["input_ids"], skip_special_tokens=False).startswith(quick)
    assert tokens["attention_mask"][0] == 1
    assert tokens["attention_mask"][-1] == 0


def test_another_model_s_folder_is_left_alone(
    klein_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same one is found to be there, another one of the family is not written over it."""
    assert main([str(klein_model), "--model", "klein-4b"]) == 0
    assert "was already in" in capsys.readouterr().out
    for other in ("dev", "klein-4b-base"):
        assert main([str(klein_model), "--model", other]) == 2
    assert set(files_of(klein_model)) == FILES
