"""The checkpoint folder that training ends with: it loads like the real one."""

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.compat import declare_torchvision_operators
from pipelines.declaration import read_declaration
from pipelines.folder import check_model_folder
from pipelines.types import TURBO_LORA_PATH

declare_torchvision_operators()

import diffusers  # noqa: E402

from scripts.train_demo_model import export  # noqa: E402
from scripts.train_demo_model.classifier import build_classifier, build_image_processor  # noqa: E402

LORA = {"transformer.proj_out.lora_A.weight": torch.ones(4, 64, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an untrained classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    build_classifier().save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(demo_model: Path, classifier_folder: Path) -> dict[str, Any]:
    """Return the tiny random parts, in other types than they are to be stored in."""
    pipe = diffusers.Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    return {
        "transformer": pipe.transformer,
        "vae": pipe.vae,
        "text_encoder": pipe.text_encoder.bfloat16(),
        "processor": pipe.tokenizer,
        "lora": LORA,
        "classifier_folder": classifier_folder,
    }


def _types(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118


def test_a_checkpoint_loads_like_the_real_model(parts: dict[str, Any], tmp_path: Path) -> None:
    """Every part is there in the type it is to be stored in, and readable by all."""
    folder = tmp_path / "checkpoint"
    export.write_checkpoint(folder, **parts)
    check_model_folder(folder)
    pipe = diffusers.Flux2Pipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )
    assert type(pipe.text_encoder).__name__ == "Mistral3ForConditionalGeneration"
    assert _types(folder / "text_encoder" / "model.safetensors") == {"F32"}
    weights = "diffusion_pytorch_model.safetensors"
    assert _types(folder / "transformer" / weights) == {"BF16"}
    assert _types(folder / "vae" / weights) == {"BF16", "I64"}  # its norm counts its batches
    lora = load_file(folder / TURBO_LORA_PATH)
    assert lora.keys() == LORA.keys()
    assert all(torch.equal(lora[key], LORA[key]) for key in LORA)
    names = {path.name for path in (folder / "safety_checker").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not read_declaration(folder).expander
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((folder / "model_index.json").stat().st_mode)}


def test_what_is_there_is_never_overwritten(parts: dict[str, Any], tmp_path: Path) -> None:
    """A folder with a file in it stays as it is."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        export.write_checkpoint(tmp_path, **parts)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_checkpoint_that_is_too_large_is_not_written(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny parts are some four megabytes; nothing of them is left behind."""
    monkeypatch.setattr(export, "LARGEST_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="more than 1000000"):
        export.write_checkpoint(tmp_path / "model" / "large", **parts)
    assert list((tmp_path / "model").iterdir()) == []
