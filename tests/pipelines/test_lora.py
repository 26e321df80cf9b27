"""LoRA files: read only if every part has its place, and then exactly as diffusers has them."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.denoiser import Denoiser
from pipelines.errors import LoraError
from pipelines.flux2 import Flux2
from pipelines.lora import LoraLinear, attach, fuse
from pipelines.lora_file import read_lora
from pipelines.quantisation import quantise_blocks
from pipelines.types import TURBO_LORA_PATH, Precision
from tests.pipelines.lora_files import KEY, LAYER, make_pair
from tests.pipelines.one_step import call, make_inputs


@pytest.fixture(scope="module")
def transformer(oracle: Any) -> Any:
    """Return the tiny checkpoint's transformer, 64 wide."""
    return oracle.transformer


@pytest.fixture(scope="module")
def turbo(demo_model: Path) -> Path:
    """Return the file with the Turbo LoRA's key layout that the tiny checkpoint carries."""
    return demo_model / TURBO_LORA_PATH


@pytest.fixture(scope="module")
def inputs(flux2: Flux2) -> dict[str, torch.Tensor]:
    """Return what the transformer is called with in one step."""
    return make_inputs(flux2)


@pytest.fixture(scope="module")
def expected(turbo: Path, demo_model: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a step of diffusers' own pipeline with the same file loaded."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    pipe.load_lora_weights(turbo.parent, weight_name=turbo.name)
    return call(pipe.transformer, inputs)


def test_beside_the_weights_it_is_diffusers_own_to_the_bit(
    transformer: Any, turbo: Path, inputs: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """And the transformer that it was put into is left as it was."""
    before = call(transformer, inputs)
    assert not torch.equal(expected, before)
    attached = attach(transformer, read_lora(turbo, transformer))
    assert torch.equal(call(attached, inputs), expected)
    assert torch.equal(call(transformer, inputs), before)


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_it_goes_beside_eight_bit_weights_too(
    transformer: Any, turbo: Path, inputs: dict[str, torch.Tensor], precision: Precision
) -> None:
    """As on a card with no room for more: what is quantised is shared, and what is added shows."""
    eight = quantise_blocks(transformer, precision)
    attached = attach(eight, read_lora(turbo, transformer))
    before = call(eight, inputs)
    with_lora = call(attached, inputs)
    assert not torch.equal(with_lora, before)
    assert torch.equal(call(eight, inputs), before)
    own = {id(buffer) for name, buffer in eight.named_buffers() if name.endswith("weight")}
    assert own <= {id(buffer) for buffer in attached.buffers()}
    assert Denoiser(attached).dtype is torch.float32


def test_fused_it_is_the_sum_rounded_once(
    transformer: Any, turbo: Path, inputs: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """In the weights to the bit, and so in the result but for the order of sums."""
    before = call(transformer, inputs)
    lora = read_lora(turbo, transformer)
    fused = fuse(transformer, lora)
    for name, pair in lora.pairs.items():
        added = pair.up.float() @ pair.down.float()
        weights = [
            tree.get_submodule(name).get_parameter("weight") for tree in (fused, transformer)
        ]
        assert torch.equal(weights[0], weights[1] + added)
    error = (call(fused, inputs) - expected).norm() / expected.norm()
    assert error < 1e-5
    assert torch.equal(call(transformer, inputs), before)


def test_fused_its_weights_are_diffusers_own_to_the_bit(
    transformer: Any, turbo: Path, demo_model: Path
) -> None:
    """In float32. What they give is not: sums on a CPU depend on where in memory weights lie."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    pipe.load_lora_weights(turbo.parent, weight_name=turbo.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    theirs = pipe.transformer.state_dict()
    ours = fuse(transformer, read_lora(turbo, transformer)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_it_does_not_name_is_shared(transformer: Any, turbo: Path) -> None:
    """And beside the weights, so are the weights themselves."""
    lora = read_lora(turbo, transformer)
    before = dict(transformer.named_parameters())
    fused = dict(fuse(transformer, lora).named_parameters())
    changed = {name for name in before if fused[name] is not before[name]}
    assert changed == {f"{name}.weight" for name in lora.pairs}
    attached = {id(parameter) for parameter in attach(transformer, lora).parameters()}
    assert attached == {id(parameter) for parameter in before.values()}


def test_it_is_known_by_its_content(turbo: Path, transformer: Any) -> None:
    """The hash is that of the file."""
    assert read_lora(turbo, transformer).sha256 == hashlib.sha256(turbo.read_bytes()).hexdigest()


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (2.0, 0.5), (8.0, 2.0)])
def test_alpha_scales_the_pair(
    transformer: Any, tmp_path: Path, alpha: float | None, factor: float
) -> None:
    """By alpha over rank where there is one, and as it is where there is none."""
    tensors = make_pair()
    if alpha is not None:
        tensors[f"transformer.{LAYER}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", transformer)
    fused = fuse(transformer, lora).get_submodule(LAYER).get_parameter("weight")
    added = fused - transformer.get_submodule(LAYER).weight
    torch.testing.assert_close(added, torch.full((64, 64), 4 * 0.5 * 0.25 * factor))


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
def test_each_prefix_before_diffusers_names_is_read(
    transformer: Any, tmp_path: Path, prefix: str
) -> None:
    """The layers are the same."""
    path = tmp_path / "lora.safetensors"
    save_file(rename(make_pair(), "transformer.", prefix, count=1), path)
    assert read_lora(path, transformer).pairs.keys() == {LAYER}


def test_beside_other_layers_than_plain_ones_it_computes_in_bfloat16() -> None:
    """Such as quantised ones, whose weights are of no type to compute in."""

    class Eight(nn.Module):
        weight = torch.zeros(3, 4, dtype=torch.int8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(*x.shape[:-1], 3)

    from pipelines.lora_parts import Pair

    layer = LoraLinear(Eight(), Pair(torch.ones(2, 4), torch.ones(3, 2), 0.5))
    assert layer.down.dtype is torch.bfloat16
    result = layer(torch.ones(1, 5, 4))
    assert torch.equal(result, torch.full((1, 5, 3), 4.0))


def rename(
    tensors: dict[str, torch.Tensor], old: str, new: str, count: int = -1
) -> dict[str, torch.Tensor]:
    """Return the tensors under changed keys."""
    return {key.replace(old, new, count): value for key, value in tensors.items()}


BAD: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str]] = {
    "nothing in it": (dict, "nothing in it"),
    "one half": (lambda: {KEY.format("A"): torch.ones(4, 64)}, "only one half"),
    "another architecture": (lambda: rename(make_pair(), "blocks.0", "blocks.9"), "no linear"),
    "no linear layer": (lambda: rename(make_pair(), "attn.to_q", "attn"), "no linear"),
    "foreign keys": (lambda: {"lora_unet_double_blocks_0": torch.ones(1)}, "not a name"),
    "too wide": (lambda: make_pair(width=128), "but its pair is"),
    "unequal ranks": (
        lambda: {**make_pair(4), KEY.format("B"): torch.ones(64, 3)},
        "but its pair is",
    ),
    "integers": (lambda: {key: value.int() for key, value in make_pair().items()}, "type I32"),
    "a layer under two names": (
        lambda: {**make_pair(), **rename(make_pair(), "transformer.", "", count=1)},
        "are the same",
    ),
    "alpha that is no number": (
        lambda: {**make_pair(), f"transformer.{LAYER}.alpha": torch.tensor(math.nan)},
        "not a finite number",
    ),
    "alpha of many": (
        lambda: {**make_pair(), f"transformer.{LAYER}.alpha": torch.ones(3)},
        "not a single number",
    ),
    "a part for a text encoder": (
        lambda: {**make_pair(), "lora_te1_layers_0.lora_down.weight": torch.ones(4, 4)},
        "lora_te1_layers_0.* is for a text encoder",
    ),
    "a DoRA": (
        lambda: {**make_pair(), f"transformer.{LAYER}.dora_scale": torch.ones(64)},
        "dora_scale is of a DoRA",
    ),
    "a DoRA of peft": (
        lambda: {**make_pair(), f"{LAYER}.lora_magnitude_vector.weight": torch.ones(64)},
        "is of a DoRA",
    ),
    "a LoHa": (
        lambda: {f"transformer.{LAYER}.hada_w1_a": torch.ones(4, 64)},
        "hada_w1_a is not a name",
    ),
    "a bias": (
        lambda: {**make_pair(), KEY.format("B").replace("weight", "bias"): torch.ones(64)},
        "bias is not a name",
    ),
    "a pair and a LoKr in one": (
        lambda: {**make_pair(), f"transformer.{LAYER}.lokr_w1": torch.ones(4, 4)},
        "not the parts of one",
    ),
    "one side of a LoKr": (
        lambda: {f"transformer.{LAYER}.lokr_w1": torch.ones(4, 4)},
        "not the parts of one",
    ),
    "a LoKr side whole and in factors": (
        lambda: {f"{LAYER}.lokr_{part}": torch.ones(8, 8) for part in ("w1", "w2", "w2_a", "w2_b")},
        "not the parts of one",
    ),
    "a LoKr of another size": (
        lambda: {f"{LAYER}.lokr_{side}": torch.ones(4, 4) for side in ("w1", "w2")},
        "but its LoKr is",
    ),
    "factors that do not fit": (
        lambda: {
            f"{LAYER}.lokr_w1": torch.ones(4, 4),
            f"{LAYER}.lokr_w2_a": torch.ones(16, 2),
            f"{LAYER}.lokr_w2_b": torch.ones(3, 16),
        },
        "factors of w2 that do not fit",
    ),
    "a layer and the one that it is part of": (
        lambda: {
            **make_pair(),
            "double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(4, 64),
            "double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(192, 4),
        },
        "are the same",
    ),
    "convolutions": (
        lambda: {f"{LAYER}.lora_{half}.weight": torch.ones(4, 64, 1, 1) for half in ("up", "down")},
        "no matrices",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_place_is_refused_by_name(transformer: Any, tmp_path: Path, case: str) -> None:
    """The message says which file, and what about it."""
    make, told = BAD[case]
    path = tmp_path / "bad.safetensors"
    save_file(make(), path)
    with pytest.raises(LoraError, match=told) as caught:
        read_lora(path, transformer)
    assert str(path) in str(caught.value)


def test_a_lokr_cannot_be_built_in(transformer: Any, tmp_path: Path) -> None:
    """For the eight-step LoRA, which is built into a transformer, that is told at the start."""
    path = tmp_path / "lokr.safetensors"
    save_file({f"{LAYER}.lokr_w{side}": torch.ones(8, 8) for side in (1, 2)}, path)
    with pytest.raises(LoraError, match="a LoKr"):
        fuse(transformer, read_lora(path, transformer))


def test_the_demonstration_checkpoint_s_lora_fits(demonstration: Flux2) -> None:
    """The flash endpoints of what is served by default have theirs."""
    from pipelines.demonstration import DEMO_CHECKPOINT

    path = DEMO_CHECKPOINT / TURBO_LORA_PATH
    lora = read_lora(path, demonstration._pipe.transformer)
    assert 2 * len(lora.pairs) == len(load_file(path))
