"""Random-weight FLUX.2s of three sizes, built on a device from their configurations.

What a step costs depends on shapes alone, so the full-size one costs what the real weights do.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import diffusers  # noqa: E402
import transformers  # noqa: E402

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.tools.demo_model import TURBO_LORA_KEY, turbo_lora_layers  # noqa: E402
from pipelines.tools.model_parts import (  # noqa: E402
    SPECIAL_TOKENS,
    build_encoder_config,
    build_processor,
    build_scheduler,
)

# Widths and depths; what is left out is diffusers' default, which is FLUX.2 [dev].
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "axes_dims_rope": (8, 8, 8, 8),
        "joint_attention_dim": 3 * 32,
    },
    "mid": {
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": 8,
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 16, 16, 16),
        "joint_attention_dim": 3 * 256,
    },
    "full": {},
}
_TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "mid": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    # Mistral-Small-3.2-24B, of whose 40 layers FLUX.2 reads 30.
    "full": {
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
_LAYERS = {"tiny": 32, "mid": 32, "full": 31}
SCALES = tuple(_TRANSFORMERS)


def build_pipe(scale: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """Build a `Flux2Pipeline` of random weights; nothing but the VAE is read from a disk.

    The VAE is the demonstration checkpoint's, but at full size, where it too is made from its
    configuration. The weights are drawn on the device.
    """
    processor = build_processor()
    language = transformers.MistralConfig(
        vocab_size=len(processor.tokenizer),
        num_hidden_layers=_LAYERS[scale],
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        **_TEXT_ENCODERS[scale],
    )
    with torch.device("meta"):
        transformer = diffusers.Flux2Transformer2DModel(**_TRANSFORMERS[scale])
    transformer = _randomise(transformer, device, dtype, seed)
    # Its rotary tables are computed when it is made, and would stay empty on "meta".
    with device:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        encoder = transformers.Mistral3ForConditionalGeneration(build_encoder_config(language))
        torch.set_default_dtype(previous)
    if scale == "full":
        vae = diffusers.AutoencoderKLFlux2().to(device, dtype)
    else:
        vae = diffusers.AutoencoderKLFlux2.from_pretrained(
            DEMO_CHECKPOINT / "vae", local_files_only=True
        ).to(device, dtype)
    pipe = diffusers.Flux2Pipeline(
        scheduler=build_scheduler(),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=processor,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    transformers.logging.set_verbosity_error()
    return pipe


def count_parameters(module: torch.nn.Module) -> int:
    """How many numbers a module has learned."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _randomise(model: Any, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """Give a model on "meta" weights of about the size that keeps signals at theirs."""
    model = model.to(dtype).to_empty(device=device)
    random = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=random)
    return model


@torch.no_grad()
def write_lora(transformer: Any, path: Path, rank: int) -> Path:
    """Write a LoRA of equal numbers in the layout of fal's Turbo file; returns its path."""
    tensors = {}
    for name, layer in turbo_lora_layers(transformer).items():
        shapes = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
        for side, shape in shapes.items():
            key = TURBO_LORA_KEY.format(layer=name, side=side)
            tensors[key] = torch.full(shape, 1e-4, dtype=torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    return path


def build_checker(folder: Path) -> None:
    """Write a safety checker of random weights in the size of Falconsai's: ViT-base, 343 MB."""
    labels = {0: "normal", 1: "nsfw"}
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(id2label=labels, label2id={name: i for i, name in labels.items()})
    )
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
