"""How strongly a LoRA is meant: what diffusers saved with it says that as peft has it."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import LoraError
from pipelines.lora_file import Lora, find_widths, read_fitting, read_lora
from tests.pipelines.lora_files import LAYER, make_pair

LAYERS = [
    *(f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "single_transformer_blocks.1.attn.to_out",
]


def write_saved(path: Path, **config: Any) -> None:
    """Write a pair as diffusers saves it, with what it was trained with."""
    saved = {f"transformer.{key}": value for key, value in config.items()}
    save_file(make_pair(), path, metadata={"lora_adapter_metadata": json.dumps(saved)})


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}])
def test_metadata_of_diffusers_scales_the_pair_as_there(
    oracle: Any, demo_model: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    """What was trained with another alpha than its rank is as strong as where it was trained."""
    from diffusers import Flux2Pipeline

    path = tmp_path / "saved.safetensors"
    write_saved(path, r=4, lora_alpha=16, target_modules=[LAYER], **config)
    parts = {"vae": None, "text_encoder": None, "tokenizer": None}
    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True, **parts)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    (expected,) = pipe.transformer.get_submodule(LAYER).scaling.values()
    pair = read_lora(path, oracle.transformer).pairs[LAYER]
    assert pair.factor == expected == (8.0 if config else 4.0)


def test_a_pair_saved_by_the_model_alone_is_as_strong_as_there(oracle: Any, tmp_path: Path) -> None:
    """Its names and metadata have nothing before them that says which model they are for."""
    from peft import LoraConfig

    trained, loaded = (copy.deepcopy(oracle.transformer) for _ in range(2))
    trained.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=[LAYER]))
    trained.save_lora_adapter(tmp_path)
    loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    (expected,) = loaded.get_submodule(LAYER).scaling.values()
    (path,) = tmp_path.iterdir()
    assert read_lora(path, oracle.transformer).pairs[LAYER].factor == expected == 4.0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"alpha_pattern": {LAYER: 2}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_alpha": []}, "metadata is not understood"),
        ({"lora_alpha": math.nan}, "not a finite number"),
    ],
)
def test_metadata_that_says_more_is_refused(
    oracle: Any, tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    """Nothing that changes what a pair does is passed over."""
    path = tmp_path / "saved.safetensors"
    write_saved(path, **config)
    with pytest.raises(LoraError, match=told):
        read_lora(path, oracle.transformer)


def save_lokr(transformer: Any, folder: Path, **config: Any) -> Path:
    """Save a LoKr of random numbers for some layers, with diffusers' own functions."""
    from diffusers import Flux2Pipeline
    from peft import LoKrConfig, get_peft_model_state_dict

    torch.manual_seed(8)
    trained = copy.deepcopy(transformer)
    config = {"target_modules": LAYERS, "init_weights": False, **config}
    trained.add_adapter(LoKrConfig(**config))
    Flux2Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(trained),
        transformer_lora_adapter_metadata=trained.peft_config["default"].to_dict(),
    )
    return folder / "pytorch_lora_weights.safetensors"


def deltas_of_diffusers(transformer: Any, path: Path) -> dict[str, Tensor]:
    """Return what diffusers adds to each layer for this file."""
    from diffusers import Flux2Pipeline
    from peft.tuners.lokr.layer import LoKrLayer

    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
    pipe = Flux2Pipeline(**parts, transformer=copy.deepcopy(transformer))
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    return {
        name: module.get_delta_weight(module.active_adapters[0])
        for name, module in pipe.transformer.named_modules()
        if isinstance(module, LoKrLayer)
    }


@pytest.mark.parametrize(
    "config",
    [
        {"r": 2, "alpha": 16},
        {"r": 2},
        {"r": 32, "alpha": 8},
        {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 16},
        {
            "r": 2,
            "alpha": 4,
            "rank_pattern": {"to_k": 32, "transformer_blocks.0.attn.to_out.0": 3},
            "alpha_pattern": {
                f"^{LAYER}": 5,
                "attn.to_k": 7,
                "to_k": 9,
                "1.attn.to_out": 1,
            },
        },
    ],
    ids=["factors", "peft's alpha", "whole", "both sides", "patterns"],
)
def test_a_lokr_saved_by_diffusers_is_as_strong_as_there(
    oracle: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    """By alpha over rank, for whole matrices, too, and by what patterns say of single layers."""
    path = save_lokr(oracle.transformer, tmp_path, **config)
    expected = deltas_of_diffusers(oracle.transformer, path)
    lora = read_fitting(path, find_widths(oracle.transformer))
    assert lora.additions.keys() == expected.keys() == set(LAYERS)
    for name, delta in expected.items():
        torch.testing.assert_close(lora.additions[name].delta(), delta, rtol=1e-5, atol=1e-6)


def read_changed(
    transformer: Any,
    path: Path,
    *,
    prefix: str = "transformer.",
    more: dict[str, Tensor] | None = None,
    **config: Any,
) -> Lora:
    """Read a LoKr of diffusers' with other keys, more tensors and other metadata."""
    with safe_open(path, "pt") as file:
        saved = json.loads(file.metadata()["lora_adapter_metadata"])
    saved |= {f"transformer.{key}": value for key, value in config.items()}
    tensors = {key.replace("transformer.", prefix, 1): t for key, t in load_file(path).items()}
    changed = path.with_name("changed.safetensors")
    metadata = {"lora_adapter_metadata": json.dumps(saved)}
    save_file({**tensors, **(more or {})}, changed, metadata=metadata)
    return read_lora(changed, transformer)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"r": 3}, "the rank of .* is 3"),
        ({"r": 0}, "the rank of .* is 0"),
        ({"alpha": []}, "metadata is not understood"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern"),
        ({"rank_pattern": {str(number): 2 for number in range(1001)}}, "rank_pattern"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"lora_alpha": 8}, "not of one saved by diffusers"),
        ({"prefix": "diffusion_model."}, "not of one saved by diffusers"),
        ({"more": {f"transformer.{LAYER}.alpha": torch.ones(1)}}, "not of one saved by diffusers"),
    ],
)
def test_metadata_that_does_not_fit_a_lokr_is_refused(
    oracle: Any, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """Nothing that may mean another strength than peft's is put on."""
    path = save_lokr(oracle.transformer, tmp_path, r=2, alpha=4)
    assert read_changed(oracle.transformer, path).additions
    with pytest.raises(LoraError, match=told):
        read_changed(oracle.transformer, path, **changes)
