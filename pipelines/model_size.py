"""How many parameters a model folder's parts have, by its config.json files alone.

Arithmetic over what `Flux2Transformer2DModel`, `AutoencoderKLFlux2`, and a text encoder of
`Mistral3ForConditionalGeneration` or `Qwen3ForCausalLM` build: no weights are read, no torch is
imported. What diffusers and transformers leave out of a file because it is their default is filled
in here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ModelNotFoundError
from pipelines.types import TURBO_LORA_PATH

READ_LAYERS = (10, 20, 30)
"""After which layers the text encoder of [dev] is read, as `Flux2Pipeline` does."""

KLEIN_READ_LAYERS = (9, 18, 27)
"""After which layers klein's text encoder is read, as `Flux2KleinPipeline` does."""

SCALE_BYTES = 4
"""A float32 for each row of 8-bit weights."""

Config = Mapping[str, Any]
"""A config.json, or a part of one."""

# The classes' defaults, of transformers for the text encoder and of diffusers for the rest.
_TRANSFORMER: Config = {
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "guidance_embeds": True,
}
_VAE: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 512, 512),
    "decoder_block_out_channels": None,
    "layers_per_block": 2,
    "latent_channels": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_TEXT_ENCODER: Config = {
    "spatial_merge_size": 2,
    "multimodal_projector_bias": False,
    "vision_feature_layer": -1,
    "tie_word_embeddings": False,
}
_LANGUAGE: Config = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None}
_QWEN: Config = {
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 151936,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_VISION: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_channels": 3,
    "patch_size": 16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Numbers of parameters, and the widths that activations go by."""

    block_linears: int
    """In the linear layers of the transformer's blocks, which are what is quantised."""
    block_rows: int
    """Rows of these layers, each with a scale of its own when quantised."""
    largest_block: int
    """In the linear layers of the largest block."""
    transformer_others: int
    """Around the blocks, and in their norms."""
    flash_linears: int
    """Of `block_linears`, what the eight-step LoRA changes: all but the double blocks' MLPs."""
    flash_rows: int
    flash_others: int
    """Of `transformer_others`, what it changes: the linear layers but that of `norm_out`.
    Which layers it has is told in `pipelines.tools.demo_model.turbo_lora_layers`."""
    text_layer: int
    """In one layer of the text encoder."""
    text_layers: int
    """How many layers it has."""
    prompt_layers: int
    """How many of these prompts need."""
    text_embedding: int
    text_rest: int
    """In its last norm, its vision tower and what leads from there to the text."""
    lm_head: int
    vae: int
    width: int
    """Of the transformer's tokens."""
    vae_width: int
    """The VAE decoder's channels where the picture first has its full size."""
    lora_bytes: int
    """The size of the eight-step LoRA's file, 0 if there is none."""

    @property
    def transformer(self) -> int:
        """All parameters of the transformer."""
        return self.block_linears + self.transformer_others

    @property
    def text_encoder(self) -> int:
        """All parameters of the text encoder."""
        layers = self.text_layer * self.text_layers
        return layers + self.text_embedding + self.text_rest + self.lm_head

    def blocks_bytes(self, bytes_per_weight: int) -> int:
        """What one set of the blocks' linear layers takes; with 1 byte they have scales."""
        return _set_bytes(self.block_linears, self.block_rows, bytes_per_weight)

    def fused_bytes(self, bytes_per_weight: int, bytes_per_other: int) -> int:
        """What the LoRA fused into copies of the layers that it changes takes."""
        blocks = _set_bytes(self.flash_linears, self.flash_rows, bytes_per_weight)
        return blocks + self.flash_others * bytes_per_other

    def text_layers_of(self, *, whole: bool) -> int:
        """Count the parameters in the text encoder's layers: all, or those that prompts need."""
        return self.text_layer * (self.text_layers if whole else self.prompt_layers)

    def text_around_of(self, *, whole: bool) -> int:
        """Count those around its layers: all, or the embedding of prompts alone."""
        return self.text_embedding + (self.text_rest + self.lm_head) * whole


def read_model_size(folder: Path, flash_lora: Path | None = None) -> ModelSize:
    """Compute the sizes of the model in a diffusers folder.

    `flash_lora` is the LoRA's file if it is not `TURBO_LORA_PATH` in the folder. Raises
    `ModelNotFoundError` for a configuration that is missing or makes no sense.
    """
    lora = flash_lora or folder / TURBO_LORA_PATH
    sizes: dict[str, int] = {"lora_bytes": lora.stat().st_size if lora.is_file() else 0}
    for component, measure in (
        ("transformer", _measure_transformer),
        ("text_encoder", _measure_text_encoder),
        ("vae", _measure_vae),
    ):
        path = folder / component / "config.json"
        try:
            sizes |= measure(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ModelNotFoundError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelNotFoundError(f"{path}: not a configuration of FLUX.2: {error!r}") from error
    return ModelSize(**sizes)


def _measure_transformer(file: Config) -> dict[str, int]:
    config = {**_TRANSFORMER, **file}
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    mlp = int(width * config["mlp_ratio"])  # SwiGLU has two of these on the way in
    doubles, singles = config["num_layers"], config["num_single_layers"]
    double_mlps = 2 * 3 * width * mlp  # a double block has two of everything: text and picture
    double_attention = 2 * 4 * width**2
    double, single = double_attention + double_mlps, 4 * width**2 + 3 * width * mlp
    double_mlp_rows = 2 * (2 * mlp + width)
    single_rows = 3 * width + 2 * mlp + width
    embedders = (config["in_channels"] + config["joint_attention_dim"]) * width
    levels = (1 + bool(config["guidance_embeds"])) * (
        config["timestep_guidance_channels"] * width + width**2
    )
    modulation = (6 + 6 + 3) * width**2
    out = width * config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"])
    flash_others = embedders + levels + modulation + out
    norms = head * (4 * doubles + 2 * singles)  # of queries and keys; the others have no weights
    rows = 2 * 4 * width * doubles + single_rows * singles
    return {
        "block_linears": double * doubles + single * singles,
        "block_rows": rows + double_mlp_rows * doubles,
        "largest_block": max(double * (doubles > 0), single * (singles > 0)),
        "transformer_others": flash_others + 2 * width**2 + norms,
        "flash_linears": double_attention * doubles + single * singles,
        "flash_rows": rows,
        "flash_others": flash_others,
        "width": width,
    }


def _measure_text_encoder(file: Config) -> dict[str, int]:
    return _measure_qwen(file) if file.get("model_type") == "qwen3" else _measure_mistral(file)


def _measure_qwen(file: Config) -> dict[str, int]:
    config = {**_QWEN, **file}
    width, head = config["hidden_size"], config["head_dim"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    attention = 2 * width * head * (heads + shared)
    attention += (head * (heads + 2 * shared) + width) * bool(config["attention_bias"])
    # Two norms of the width, and one each for queries and keys of a head.
    norms = 2 * width + 2 * head
    embedding, layers = config["vocab_size"] * width, config["num_hidden_layers"]
    return {
        "text_layer": attention + 3 * width * config["intermediate_size"] + norms,
        "text_layers": layers,
        "prompt_layers": min(layers, KLEIN_READ_LAYERS[-1]),
        "text_embedding": embedding,
        "text_rest": width,
        "lm_head": 0 if config["tie_word_embeddings"] else embedding,
    }


def _measure_mistral(file: Config) -> dict[str, int]:
    config = {**_TEXT_ENCODER, **file}
    language = {**_LANGUAGE, **config["text_config"]}
    width, mlp = language["hidden_size"], language["intermediate_size"]
    heads = language["num_attention_heads"]
    head = language["head_dim"] or width // heads
    # Queries and the way out have all heads; keys and values share theirs.
    attention = 2 * width * head * (heads + (language["num_key_value_heads"] or heads))
    embedding = language["vocab_size"] * width
    return {
        "text_layer": attention + 3 * width * mlp + 2 * width,
        "text_layers": language["num_hidden_layers"],
        "prompt_layers": min(language["num_hidden_layers"], READ_LAYERS[-1]),
        "text_embedding": embedding,
        "text_rest": width + _measure_vision(config, width),
        "lm_head": 0 if config["tie_word_embeddings"] else embedding,
    }


def _measure_vision(config: Config, text_width: int) -> int:
    """Count the parameters of the vision tower and of the projector behind it."""
    vision = {**_VISION, **(config.get("vision_config") or {})}
    width = vision["hidden_size"]
    layer = 4 * width**2 + 3 * width * vision["intermediate_size"] + 2 * width
    patches = vision["num_channels"] * vision["patch_size"] ** 2 * width + width
    read = config["vision_feature_layer"]
    merger = width + (width * config["spatial_merge_size"]) ** 2
    projector = width * (1 if isinstance(read, int) else len(read)) * text_width + text_width**2
    biases = 2 * text_width * bool(config["multimodal_projector_bias"])
    return int(layer * vision["num_hidden_layers"] + patches + merger + projector + biases)


def _measure_vae(file: Config) -> dict[str, int]:
    config = {**_VAE, **file}
    widths, latent = config["block_out_channels"], config["latent_channels"]
    decoder_widths = config["decoder_block_out_channels"] or widths
    depth, attends = config["layers_per_block"], config["mid_block_add_attention"]
    encoder = _side(widths, depth) + _middle(widths[-1], attends)
    encoder += _conv(config["in_channels"], widths[0]) + _conv(widths[-1], 2 * latent)
    decoder = _side(decoder_widths[::-1], depth + 1) + _middle(decoder_widths[-1], attends)
    decoder += _conv(latent, decoder_widths[-1]) + _conv(decoder_widths[0], config["out_channels"])
    around = _conv(2 * latent, 2 * latent, 1) * config["use_quant_conv"]
    around += _conv(latent, latent, 1) * config["use_post_quant_conv"]
    # What is widened to full size last is what comes out of the last block but one.
    full_size = decoder_widths[min(1, len(decoder_widths) - 1)]
    return {"vae": encoder + decoder + around, "vae_width": full_size}


def _side(widths: Sequence[int], depth: int) -> int:
    """Count an encoder's or decoder's blocks, of `depth` layers each, and its last norm."""
    parameters, width = 0, widths[0]
    for wanted in widths:
        parameters += _residual(width, wanted) + (depth - 1) * _residual(wanted, wanted)
        width = wanted
    resized = sum(_conv(width, width) for width in widths[:-1])
    return parameters + resized + 2 * widths[-1]


def _middle(width: int, attends: bool) -> int:
    attention = 2 * width + 4 * (width**2 + width)
    return 2 * _residual(width, width) + attention * attends


def _residual(width: int, wanted: int) -> int:
    shortcut = _conv(width, wanted, 1) if width != wanted else 0
    return 2 * width + _conv(width, wanted) + 2 * wanted + _conv(wanted, wanted) + shortcut


def _conv(width: int, wanted: int, side: int = 3) -> int:
    return width * wanted * side**2 + wanted


def _set_bytes(weights: int, rows: int, bytes_per_weight: int) -> int:
    return weights * bytes_per_weight + (SCALE_BYTES * rows if bytes_per_weight == 1 else 0)
