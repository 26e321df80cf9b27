"""The tiny checkpoint: its files, what diffusers makes of them, and the command that writes it."""

import json
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from pipelines.compat import declare_torchvision_operators
from pipelines.tools.demo_model import MANIFEST_NAME, main, write_demo_model
from pipelines.types import TURBO_LORA_PATH

FILES = {
    "demo_model.json",
    "flash/flux.2-turbo-lora.safetensors",
    "model_index.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    "text_encoder/model.safetensors",
    "tokenizer/chat_template.jinja",
    "tokenizer/processor_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
PROMPT = "a red fox in the snow"
VISIBLE = 4.0  # mean absolute difference of two images, in steps of 255


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _reference(background: str) -> Image.Image:
    """Draw a reference image of 128x96 pixels."""
    image = Image.new("RGB", (128, 96), background)
    ImageDraw.Draw(image).ellipse((20, 10, 90, 80), fill="gold")
    return image


def _image(pipeline: Any, **changes: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Generate one image and return its pixels as height x width x RGB, 0 to 255."""
    arguments = {"prompt": PROMPT, "height": 128, "width": 128, "guidance_scale": 2.5}
    generator = torch.Generator().manual_seed(7)
    arguments |= {"num_inference_steps": 2, "generator": generator, **changes}
    return np.asarray(pipeline(**arguments).images[0]).astype(np.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a demo model that this process wrote."""
    folder = tmp_path_factory.mktemp("demo") / "models" / "tiny"
    write_demo_model(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Any:
    """Return what a plain load by diffusers makes of it."""
    declare_torchvision_operators()
    import diffusers

    loaded = diffusers.Flux2Pipeline.from_pretrained(model, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_has_the_real_layout_and_only_safetensors(model: Path) -> None:
    """Every file is one that the real one has, but for the manifest, the LoRA and the checker."""
    files = _files(model)
    assert set(files) == FILES
    assert sum(map(len, files.values())) < 6_000_000
    assert json.loads(files[MANIFEST_NAME])["files"].keys() == FILES - {MANIFEST_NAME}
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    # A server in a container seldom runs as the user who wrote the model.
    modes = {stat.S_IMODE(path.stat().st_mode) for path in model.rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((model / "model_index.json").stat().st_mode)}


def test_another_process_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """The command, with every warning an error, says in one line where the model is."""
    folder = tmp_path / "again"
    command = [sys.executable, "-W", "error", "-m", "pipelines.tools.demo_model", str(folder)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert run.stdout == f"the demo model is now in {folder} (4.4 MB)\n"
    assert run.stderr == ""
    assert _files(folder) == _files(model)


def test_another_seed_is_another_model_and_no_network_is_needed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only drawn weights differ. The caller's own random numbers are not touched."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = torch.get_rng_state()
    write_demo_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    ours, others = _files(model), _files(tmp_path / "other")
    different = {name for name in FILES if ours[name] != others[name]}
    drawn = {name for name in FILES if name.endswith(".safetensors")} - {
        "safety_checker/model.safetensors"
    }
    assert different == drawn | {MANIFEST_NAME}


def test_a_plain_load_is_all_float32(pipeline: Any) -> None:
    """The text encoder keeps the type that is stored; the other parts are brought to float32."""
    for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        assert {tensor.dtype for tensor in part.parameters()} == {torch.float32}


def test_what_code_depends_on_is_as_in_the_real_model(pipeline: Any) -> None:
    """Channels, compression and roles of tokens, and a schedule shifted as the real one."""
    vae, transformer, text = pipeline.vae, pipeline.transformer, pipeline.text_encoder
    assert (vae.config.latent_channels, pipeline.vae_scale_factor) == (32, 8)
    assert (transformer.config.in_channels, transformer.config.guidance_embeds) == (128, True)
    assert transformer.config.joint_attention_dim == 3 * text.config.text_config.hidden_size
    hidden = text(input_ids=torch.tensor([[1, 3, 4, 2]]), output_hidden_states=True).hidden_states
    assert len(hidden) == 33  # 10, 20 and 30 are read, and the last has gone through the norm
    assert text.lm_head.weight is not text.get_input_embeddings().weight
    assert text.config.image_token_id == pipeline.tokenizer.image_token_id
    assert (pipeline.tokenizer.patch_size, pipeline.tokenizer.spatial_merge_size) == (14, 2)
    schedule = pipeline.scheduler.config
    assert (schedule.use_dynamic_shifting, schedule.time_shift_type) == (True, "exponential")
    assert (schedule.shift, schedule.base_shift, schedule.max_shift) == (3.0, 0.5, 1.15)


def test_the_batch_norm_of_the_vae_is_worth_testing(pipeline: Any) -> None:
    """Its mean and variance differ by channel, and neither is what a fresh layer has."""
    mean, variance = pipeline.vae.bn.running_mean, pipeline.vae.bn.running_var
    assert mean.shape == variance.shape == (128,)
    assert mean.abs().max() < 1
    assert mean.std() > 0.1
    assert variance.min() >= 0.5
    assert variance.std() > 0.1


def test_a_prompt_fills_512_tokens_from_the_right(pipeline: Any) -> None:
    """The system message leaves most of them to the prompt: as bytes it would take 190."""
    embeds, _ = pipeline.encode_prompt(PROMPT)
    assert embeds.shape == (1, 512, 96)
    tokenizer = pipeline.tokenizer.tokenizer
    assert len(tokenizer(SYSTEM_MESSAGE)["input_ids"]) < 64
    settings = {"padding": "max_length", "max_length": 512, "truncation": True}
    short, long = tokenizer(["fox", "fox " * 1000], **settings)["attention_mask"]
    assert short == [0] * (512 - sum(short)) + [1] * sum(short)
    assert sum(long) == 512


@pytest.mark.parametrize(("width", "height"), [(64, 64), (256, 192)])
def test_an_image_is_varied_and_comes_out_the_same_again(
    pipeline: Any, width: int, height: int
) -> None:
    """It is neither one colour nor mostly beyond black and white."""
    image = _image(pipeline, width=width, height=height)
    assert image.shape == (height, width, 3)
    assert image.std() > 20
    assert np.isin(image, (0, 255)).mean() < 0.2
    assert np.array_equal(image, _image(pipeline, width=width, height=height))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a city skyline at night"},
        {"prompt": "a blue fox in the snow"},
        {"guidance_scale": 4.0},
        {"num_inference_steps": 4},
        {"image": [_reference("navy")]},
    ],
    ids=["prompt", "one word", "guidance", "steps", "reference"],
)
def test_what_is_asked_for_shows_in_the_image(pipeline: Any, change: dict[str, Any]) -> None:
    """Random weights of the usual size would hide all of it behind the noise they start from."""
    difference = np.abs(_image(pipeline) - _image(pipeline, **change)).mean()
    assert difference > VISIBLE


def test_each_reference_image_shows(pipeline: Any) -> None:
    """Not only whether there is one, but what is in it, and how many there are."""
    navy, white = _reference("navy"), _reference("white")
    one, other, both = (_image(pipeline, image=i) for i in ([navy], [white], [navy, white]))
    assert np.abs(one - other).mean() > VISIBLE
    assert np.abs(one - both).mean() > VISIBLE


def test_a_chat_with_an_image_reaches_the_text_encoder(pipeline: Any) -> None:
    """Two user turns in a row, as prompt expansion makes them; 56x84 pixels are 2x3 tokens."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Describe."}]},
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (56, 84))}]},
        {"role": "user", "content": "briefly"},
    ]
    inputs = pipeline.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    row = "[IMG][IMG]"
    assert pipeline.tokenizer.decode(inputs["input_ids"][0]) == (
        "<s>[SYSTEM_PROMPT]Describe.[/SYSTEM_PROMPT]"
        f"[INST]{row}[IMG_BREAK]{row}[IMG_BREAK]{row}[IMG_END][/INST][INST]briefly[/INST]"
    )
    asked = inputs["input_ids"].shape[1]
    answer = pipeline.text_encoder.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert asked < answer.shape[1] <= asked + 3


def test_the_lora_fits_the_layers_that_diffusers_maps_it_to(pipeline: Any, model: Path) -> None:
    """It has as many pairs, for the same kinds of layers, as the real Turbo LoRA."""
    lora = pipeline.lora_state_dict(
        str(model), weight_name=TURBO_LORA_PATH.as_posix(), local_files_only=True
    )
    assert lora.keys() == load_file(model / TURBO_LORA_PATH).keys()
    layers = dict(pipeline.transformer.named_modules())
    names = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in lora}
    doubles = len(pipeline.transformer.transformer_blocks)
    singles = len(pipeline.transformer.single_transformer_blocks)
    assert len(names) == 8 * doubles + 2 * singles + 10  # 170 in the real model
    for name in names:
        down, up = (lora[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        assert (up @ down).shape == layers[name].weight.shape
        assert down.dtype == up.dtype == torch.bfloat16


def test_the_lora_shows_in_the_image(pipeline: Any, model: Path) -> None:
    """Merged by hand, as a pair adds its product to its layer's weights."""
    before = _image(pipeline)
    weights = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    lora = load_file(model / TURBO_LORA_PATH)
    merged = dict(weights)
    for key in (key for key in lora if key.endswith(".lora_A.weight")):
        name = key.removeprefix("transformer.").replace(".lora_A", "")
        merged[name] = merged[name] + lora[key.replace("lora_A", "lora_B")] @ lora[key]
    pipeline.transformer.load_state_dict(merged)
    after = _image(pipeline)
    pipeline.transformer.load_state_dict(weights)
    assert np.abs(after - before).mean() > VISIBLE
    assert after.std() > 20


def test_a_model_that_is_there_is_left_alone(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a script may ask for it every time."""
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    assert main([str(model)]) == 0
    assert capsys.readouterr().out == f"the demo model was already in {model} (4.4 MB)\n"
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    """A folder made beforehand is no obstacle, unlike a demo model of another seed."""
    folder = tmp_path / "empty"
    folder.mkdir()
    assert main([str(folder)]) == 0
    assert (folder / MANIFEST_NAME).is_file()
    assert main([str(folder), "--seed", "1"]) == 2


@pytest.mark.parametrize("content", ["notes.txt", MANIFEST_NAME])
def test_anything_else_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """A folder of other files, one whose manifest names what is not there, and a plain file."""
    manifest = {"format": 3, "model": "dev", "seed": 0, "files": {"model_index.json": 1}}
    (tmp_path / content).write_text(json.dumps(manifest))
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [content]
    with pytest.raises(FileExistsError, match=content):
        write_demo_model(tmp_path / content)


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model appears whole or not at all."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write_demo_model(tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []
