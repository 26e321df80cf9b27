"""Loading: what is missing is told before anything is loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ModelNotFoundError
from pipelines.folder import check_model_folder
from pipelines.loading import load_pipeline
from pipelines.types import LoadOptions


@pytest.fixture
def copy(demo_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(demo_model, tmp_path / "model")


def test_a_whole_folder_passes(demo_model: Path) -> None:
    """The tiny checkpoint has everything."""
    check_model_folder(demo_model)


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(ModelNotFoundError, match="nowhere: no such folder"):
        check_model_folder(tmp_path / "nowhere")


def test_every_missing_file_is_named(copy: Path) -> None:
    """Three missing files make three lines, each with its path."""
    missing = [
        copy / "model_index.json",
        copy / "vae" / "diffusion_pytorch_model.safetensors",
        copy / "tokenizer" / "tokenizer_config.json",
    ]
    for path in missing:
        path.unlink()
    with pytest.raises(ModelNotFoundError) as caught:
        check_model_folder(copy)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for path in missing:
        assert any(line.startswith(f"{path}: missing") for line in lines)


def test_a_pickle_is_no_substitute(copy: Path) -> None:
    """Weights in a pickle count as missing: only safetensors are read."""
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelNotFoundError, match="diffusion_pytorch_model.safetensors: missing"):
        check_model_folder(copy)


def test_a_file_cut_short_is_named(copy: Path) -> None:
    """An interrupted copy is found by the header's own arithmetic."""
    weights = copy / "text_encoder" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(ModelNotFoundError, match=f"cut short: {len(data) - 1} bytes of"):
        check_model_folder(copy)
    weights.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelNotFoundError, match="safetensors file"):
        check_model_folder(copy)


def test_missing_shards_are_named(copy: Path) -> None:
    """Of a sharded component every missing shard is named, and the present one is not."""
    folder = copy / "transformer"
    shards = [f"diffusion_pytorch_model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / shards[0])
    index = {"weight_map": {f"layer{n}": shard for n, shard in enumerate(shards)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFoundError) as caught:
        check_model_folder(copy)
    message = str(caught.value)
    assert shards[0] not in message
    assert f"{folder / shards[1]}: missing" in message
    assert f"{folder / shards[2]}: missing" in message


def test_a_broken_shard_index_is_named(copy: Path) -> None:
    """An index that does not parse is a problem of its own."""
    index = copy / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(ModelNotFoundError, match=index.name):
        check_model_folder(copy)


def test_cuda_without_a_card_says_so(demo_model: Path) -> None:
    """Asking for a device that torch cannot see is the operator's mistake, told as such."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    options = LoadOptions(model=demo_model, device="cuda")
    with pytest.raises(ModelNotFoundError, match="finds no CUDA device"):
        load_pipeline(options)


def test_bfloat16_can_be_asked_for(demo_model: Path) -> None:
    """The number format is the operator's choice on any device."""
    options = LoadOptions(model=demo_model, device="cpu", dtype="bfloat16")
    _, description = load_pipeline(options)
    assert description == "tiny on cpu in bfloat16, profile cpu"


def test_layers_that_are_never_read_are_not_kept(demo_model: Path) -> None:
    """Of the text encoder's 32 layers thirty stay in memory, where it only reads prompts."""
    from pipelines.flux2 import Flux2

    for text_encoder, layers in (("prompts", 30), ("auto", 32), ("whole", 32)):
        options = LoadOptions(model=demo_model, device="cpu", text_encoder=text_encoder)
        pipeline, _ = load_pipeline(options)
        assert isinstance(pipeline, Flux2)
        assert len(pipeline._pipe.text_encoder.model.language_model.layers) == layers


def test_a_missing_model_is_told_without_importing_torch(tmp_path: Path) -> None:
    """The check comes before the slow imports."""
    script = (
        "import sys; from pathlib import Path\nfrom pipelines.types import LoadOptions\n"
        "from pipelines.loading import load_pipeline\n"
        f"options = LoadOptions(model=Path({str(tmp_path / 'none')!r}), device='cpu')\n"
        "try:\n    load_pipeline(options)\n"
        "except Exception as error:\n    print(type(error).__name__, 'torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ModelNotFoundError", "False"]
