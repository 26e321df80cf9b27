"""By which names LoRA files call the layers of a FLUX.2 transformer. No torch.

A key is a prefix, a layer's name, and which part of what is added to that layer it holds. The
layers' names are diffusers' own or those of Black Forest Labs' checkpoints; trainers write both
with dots, or with underscores instead (kohya, LyCORIS).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.errors import LoraError


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows of what is added go: to a layer of diffusers' name.

    Of the rows it takes share `share` of `shares` equal ones. With `swapped` the halves of these
    change places.
    """

    layer: str
    share: int = 0
    shares: int = 1
    swapped: bool = False


Places = Mapping[str, tuple[Place, ...]]
"""Places by the name in the file, of which some stand for several layers at once."""

_PREFIXES = (
    *("base_model.model.", "diffusion_model.", "transformer."),
    *("lora_unet_", "lora_transformer_", "lycoris_"),
)
"""What stands before a layer's name: peft's, ai-toolkit's and ComfyUI's, diffusers', kohya's."""

_PARTS = {
    "down": r"lora_A(?:\.default)?\.weight|lora_down\.weight|lora\.down\.weight",
    "up": r"lora_B(?:\.default)?\.weight|lora_up\.weight|lora\.up\.weight",
    "alpha": "alpha",
    **{
        part: rf"lokr_{part}(?:\.default)?" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
    },
}

_KEY = re.compile(
    r"(?P<name>.+?)\.(?:"
    + "|".join(f"(?P<{part}>{pattern})" for part, pattern in _PARTS.items())
    + ")"
)

_TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:text_encoder|lora_te|lycoris_te|te\.)")
_DORA = re.compile(r"\.(?:dora_scale|lora_magnitude_vector)(?:\.|$)")

_EVERYWHERE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
}
"""Black Forest Labs' names outside the blocks. Source of all three tables: diffusers'
`convert_flux2_transformer_checkpoint_to_diffusers`, which reads these checkpoints."""

_LAST_MODULATION = "final_layer.adaLN_modulation.1", "norm_out.linear"
"""Shift and scale, which diffusers has the other way round."""

_IN_DOUBLE_BLOCKS = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_IN_SINGLE_BLOCKS = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}

_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
"""Three layers of diffusers' in one; by these names diffusers' own fused layers go, too."""

_DIFFUSERS_FUSED = {"attn.to_qkv": "img_attn.qkv", "attn.to_added_qkv": "txt_attn.qkv"}

_BLOCK = re.compile(r"(?P<kind>single_transformer_blocks|transformer_blocks)\.(?P<number>\d+)\.")


def find_places(layers: Iterable[str]) -> Places:
    """Return all names of these layers, which a transformer has, and what each stands for."""
    known = set(layers)
    names: dict[str, tuple[Place, ...]] = {layer: (Place(layer),) for layer in known}
    names |= {theirs: (Place(ours),) for theirs, ours in _EVERYWHERE.items()}
    names[_LAST_MODULATION[0]] = (Place(_LAST_MODULATION[1], swapped=True),)
    for found in {found.group(): found for found in map(_BLOCK.match, known) if found}.values():
        names |= _name_block(found.group(), found["number"], is_double=found["kind"][0] == "t")
    names = {
        name: places
        for name, places in names.items()
        if all(place.layer in known for place in places)
    }
    # Some exports cut the name of the double blocks at a wrong place; diffusers reads these, too.
    cut = {name[4:]: places for name, places in names.items() if name.startswith("transformer_b")}
    dotted = {**names, **cut}
    return {**{name.replace(".", "_"): places for name, places in dotted.items()}, **dotted}


def _name_block(ours: str, number: str, *, is_double: bool) -> dict[str, tuple[Place, ...]]:
    """Name one block's layers as Black Forest Labs do; `ours` ends in a dot."""
    theirs = f"{'double' if is_double else 'single'}_blocks.{number}."
    singles = _IN_DOUBLE_BLOCKS if is_double else _IN_SINGLE_BLOCKS
    names: dict[str, tuple[Place, ...]] = {
        theirs + name: (Place(ours + layer),) for name, layer in singles.items()
    }
    if is_double:
        fused = {
            name: tuple(Place(ours + layer, share, 3) for share, layer in enumerate(layers))
            for name, layers in _FUSED.items()
        }
        names |= {theirs + name: places for name, places in fused.items()}
        names |= {ours + name: fused[other] for name, other in _DIFFUSERS_FUSED.items()}
    return names


def split_key(key: str) -> tuple[str, str]:
    """Split a file's key into the layer's name, without a prefix, and the part that it holds.

    Parts are `down`, `up` and `alpha` of a LoRA; `w1`, `w2`, or of each its two factors `_a` and
    `_b`, of a LoKr. Raises `LoraError` for a key of any other kind: what cannot be added is never
    passed over, for the image would be another than the trainer's.
    """
    found = _KEY.fullmatch(key)
    if _TEXT_ENCODER.match(key):
        raise LoraError(f"{key} is for a text encoder: only the transformer takes LoRAs here")
    if _DORA.search(key):
        raise LoraError(f"{key} is of a DoRA, which is not supported")
    if not found:
        raise LoraError(f"{key} is not a name of a LoRA or a LoKr")
    name, part = found["name"], next(part for part in _PARTS if found[part])
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name, part
