"""Klein from a folder: what is missing, how it may be laid out, and what it is not asked for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from pipelines import construction
from pipelines.errors import LanguageError, ModelNotFoundError
from pipelines.flux2 import Flux2
from pipelines.folder import check_model_folder
from pipelines.loading import load_pipeline
from pipelines.memory import choose_plan
from pipelines.plan import Plan
from pipelines.streaming import HostEmbedding, Streamed
from pipelines.tools import doctor, quantise
from pipelines.types import LoadOptions, Precision
from tests.pipelines.test_flux2 import make_latents, make_request
from tests.pipelines.test_memory import make_card

Load = Callable[..., Flux2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def load(klein_base_model: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads the tiny base klein by this machine's plan with changes."""

    def load(folder: Path = klein_base_model, **changes: Any) -> Flux2:
        def choose(*args: Any, **kwargs: Any) -> Plan:
            return replace(choose_plan(*args, **kwargs), **changes)

        monkeypatch.setattr(construction, "choose_plan", choose)
        pipeline, _ = load_pipeline(LoadOptions(model=folder, device="cpu"))
        assert isinstance(pipeline, Flux2)
        return pipeline

    return load


def test_a_klein_folder_is_checked_like_any_other(klein_model: Path, tmp_path: Path) -> None:
    """It is whole as it is written; a missing file, or another model's index, is named."""
    check_model_folder(klein_model)
    folder = shutil.copytree(klein_model, tmp_path / "klein")
    weights = folder / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelNotFoundError) as caught:
        check_model_folder(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for end in (
        "tokenizer_config.json: missing",
        f"{weights}: missing",
        "a model for FluxPipeline",
    ):
        assert any(end in line for line in lines)


def test_streamed_weights_give_the_same_picture(
    load: Load, klein_base: Flux2, references: tuple[Path, ...]
) -> None:
    """Reader and blocks in main memory, both passes of every step, one request after the other."""
    streamed = load(text_encoder="streamed", blocks="streamed")
    language = streamed._pipe.text_encoder.model
    assert isinstance(language.embed_tokens, HostEmbedding)
    assert len(language.layers) == 27
    assert all(isinstance(layer, Streamed) for layer in language.layers)
    for request in (
        make_request(guidance_scale=5.0, negative_prompt="blurry"),
        make_request(guidance_scale=5.0, references=references[:1]),
    ):
        assert torch.equal(make_latents(streamed, request), make_latents(klein_base, request))


def test_no_more_of_the_reader_is_loaded_than_prompts_need(klein: Flux2) -> None:
    """Of 29 layers 27, and no LM head, even where the operator wants the encoder whole."""
    for pipeline in (klein, load_whole(klein)):
        encoder = pipeline._pipe.text_encoder
        assert len(encoder.model.layers) == 27
        assert not list(encoder.lm_head.parameters())


def load_whole(klein: Flux2) -> Flux2:
    """Load the model again, asking for all of its text encoder."""
    folder = Path(klein._pipe.config._name_or_path)
    options = LoadOptions(model=folder, device="cpu", text_encoder="whole")
    pipeline, _ = load_pipeline(options)
    assert isinstance(pipeline, Flux2)
    return pipeline


def test_criteria_are_never_left_out_in_silence(klein_model: Path) -> None:
    """Where prompts are to be judged, a model that cannot judge them is not served."""
    options = LoadOptions(model=klein_model, device="cpu", prompt_criteria=("Is it rude?",))
    with pytest.raises(LanguageError, match=r"criteria .* FLUX.2 \[klein\], distilled, .* cannot"):
        load_pipeline(options)


def test_another_model_s_lora_is_not_klein_s(klein_model: Path, demo_model: Path) -> None:
    """A flash LoRA in the operator's settings is [dev]'s: nothing is read of it, or kept for it."""
    lora = next((demo_model / "flash").iterdir())
    with capture_logs() as lines:
        pipeline, _ = load_pipeline(LoadOptions(model=klein_model, device="cpu", flash_lora=lora))
    assert pipeline.describe(make_request().settings)["lora"] == "none"
    (plan,) = (line for line in lines if line["event"] == "memory plan")
    assert plan["flash"] is None
    assert not any("LoRA" in line["event"] for line in lines)


def test_weights_in_8_bits_are_written_and_read(
    load: Load, klein_base_model: Path, tmp_path: Path
) -> None:
    """`flux2-serve weights quantize` on a klein; the picture is that of quantising at load."""
    folder = shutil.copytree(klein_base_model, tmp_path / "klein")
    assert quantise.main(["--model", str(folder), "--dtype", "float32"]) == 0
    with capture_logs() as lines:
        written = load(folder, exact=False, fast=Precision.FP8)
    assert any(line["event"] == "quantised weights" for line in lines)
    fast = load(exact=False, fast=Precision.FP8)
    request = make_request(guidance_scale=5.0)
    assert torch.equal(make_latents(written, request), make_latents(fast, request))
    assert written.describe(request.settings)["precision"] == "fp8"


def test_the_doctor_knows_a_klein(
    klein_model: Path,
    klein_base_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says which kind it is, plans for it, and misses no LoRA that there is not."""
    monkeypatch.setattr(doctor, "probe_card", lambda _name: make_card(24))
    for folder, kind in ((klein_model, "distilled"), (klein_base_model, "base")):
        assert doctor.main(["--model", str(folder)]) == 0
        out = capsys.readouterr().out
        assert f"model: {folder}\n  kind: FLUX.2 [klein], {kind}\n" in out
        assert "  plan: 141gb, blocks in bfloat16 and fp8 resident, text encoder resident, " in out
        assert "flash LoRA: " not in out
    assert doctor.main(["--model", str(klein_model), "--json", "--flash-lora", "/nowhere"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["flash_lora"] is None
    assert report["model"]["kind"] == "FLUX.2 [klein], distilled"
