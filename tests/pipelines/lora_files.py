"""LoRA files as trainers write them, of random numbers, for the tiny checkpoint's transformer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

LAYER = "transformer_blocks.0.attn.to_q"
KEY = f"transformer.{LAYER}.lora_{{}}.weight"
"""One layer of that transformer, 64 wide, and how diffusers names the halves of its pair."""

RANK = 4
BLOCKS = 2, 4
"""Double and single blocks of the tiny checkpoint."""

BFL_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
BFL_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": ("attn.to_qkv_mlp_proj",),
    "linear2": ("attn.to_out",),
}
BFL_OTHERS: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}


def make_pair(rank: int = 4, width: int = 64) -> dict[str, torch.Tensor]:
    """Return a pair for one layer."""
    return {
        KEY.format("A"): torch.full((rank, width), 0.5),
        KEY.format("B"): torch.full((width, rank), 0.25),
    }


def bfl_layers(*, others: bool = True) -> dict[str, tuple[str, ...]]:
    """Return Black Forest Labs' names of layers, each with diffusers' names of what it is."""
    doubles, singles = BLOCKS
    layers: dict[str, tuple[str, ...]] = {
        f"double_blocks.{block}.{theirs}": tuple(f"transformer_blocks.{block}.{o}" for o in ours)
        for block in range(doubles)
        for theirs, ours in BFL_DOUBLE.items()
    } | {
        f"single_blocks.{block}.{theirs}": tuple(
            f"single_transformer_blocks.{block}.{o}" for o in ours
        )
        for block in range(singles)
        for theirs, ours in BFL_SINGLE.items()
    }
    return layers | (dict(BFL_OTHERS) if others else {})


def shape_of(transformer: Any, names: tuple[str, ...]) -> tuple[int, int]:
    """Return (out, in) of these layers in one."""
    shapes = [transformer.get_submodule(name).weight.shape for name in names]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def noise(*shape: int) -> Tensor:
    """Return small numbers, so that the picture changes and does not burn."""
    return torch.randn(shape) * 0.1


def make_pairs(
    transformer: Any,
    layers: Mapping[str, tuple[str, ...]],
    key: Callable[[str], str],
    halves: tuple[str, str],
    *,
    alpha: float | None = None,
    rank: int = RANK,
) -> dict[str, Tensor]:
    """Make a pair for each layer, under `key` of its name and the words for its halves."""
    tensors = {}
    for name, ours in layers.items():
        out, into = shape_of(transformer, ours)
        tensors[f"{key(name)}.{halves[0]}"] = noise(rank, into)
        tensors[f"{key(name)}.{halves[1]}"] = noise(out, rank)
        if alpha is not None:
            tensors[f"{key(name)}.alpha"] = torch.tensor(alpha)
    return tensors


def make_lokr(
    transformer: Any,
    layers: Mapping[str, tuple[str, ...]],
    key: Callable[[str], str],
    *,
    factors: frozenset[str] = frozenset(),
    alpha: float | None = None,
    size: int = 4,
) -> dict[str, Tensor]:
    """Make a LoKr for each layer: w1 (size, size), and those in `factors` in two factors."""
    tensors = {}
    for name, ours in layers.items():
        out, into = shape_of(transformer, ours)
        shapes = {"w1": (size, size), "w2": (out // size, into // size)}
        for side, shape in shapes.items():
            if side in factors:
                tensors[f"{key(name)}.lokr_{side}_a"] = noise(shape[0], 2)
                tensors[f"{key(name)}.lokr_{side}_b"] = noise(2, shape[1])
            else:
                tensors[f"{key(name)}.lokr_{side}"] = noise(*shape)
        if alpha is not None:
            tensors[f"{key(name)}.alpha"] = torch.tensor(alpha)
    return tensors


PEFT = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight")


def diffusers_layers() -> dict[str, tuple[str, ...]]:
    """Return diffusers' names of some layers of each kind, inside the blocks and around."""
    names = [name for names in bfl_layers().values() for name in names]
    return {name: (name,) for name in [*names, "single_stream_modulation.linear"]}


def make_formats(transformer: Any) -> dict[str, dict[str, Tensor]]:
    """Make a file of each common format, all layers that it can name in each."""
    torch.manual_seed(5)
    ours, theirs = diffusers_layers(), bfl_layers()
    in_blocks = {name: layers for name, layers in ours.items() if "blocks." in name}

    def kohya(name: str) -> str:
        return "lora_unet_" + name.replace(".", "_")

    return {
        "diffusers": make_pairs(transformer, ours, "transformer.{}".format, PEFT),
        "peft": make_pairs(
            transformer,
            theirs,
            "base_model.model.{}".format,
            PEFT,
        ),
        "kohya": make_pairs(transformer, theirs, kohya, KOHYA, alpha=2.0),
        "kohya without alpha": make_pairs(transformer, theirs, kohya, KOHYA),
        "ai-toolkit": make_pairs(transformer, theirs, "diffusion_model.{}".format, PEFT),
        "ai-toolkit with diffusers' names": make_pairs(
            transformer, in_blocks, "diffusion_model.{}".format, PEFT
        ),
        "LoKr of ai-toolkit": make_lokr(
            transformer,
            theirs,
            "diffusion_model.{}".format,
            factors=frozenset({"w2"}),
            alpha=1.0,
        ),
        "LoKr of whole matrices, alpha without effect": make_lokr(
            transformer, theirs, "diffusion_model.{}".format, alpha=7.0
        ),
        "LoKr of LyCORIS": make_lokr(
            transformer,
            in_blocks,
            lambda name: "lycoris_" + name.replace(".", "_"),
            factors=frozenset({"w2"}),
            alpha=2.0,
        ),
        "LoKr of SimpleTuner": make_lokr(transformer, in_blocks, str, alpha=1.0),
        "LoKr whose rows do not come in thirds": make_lokr(
            transformer, theirs, "diffusion_model.{}".format, size=8
        ),
    }


FORMATS = (
    "diffusers",
    "peft",
    "kohya",
    "kohya without alpha",
    "ai-toolkit",
    "ai-toolkit with diffusers' names",
    "LoKr of ai-toolkit",
    "LoKr of whole matrices, alpha without effect",
    "LoKr of LyCORIS",
    "LoKr of SimpleTuner",
    "LoKr whose rows do not come in thirds",
)
