"""Writes a very small FLUX.2 with random weights, in the folder layout diffusers loads.

Every number that code depends on is the real model's: channels, compression, hidden states,
image patches, token roles. Widths and depths are not. Its safety checker fires on red. Needs no
network. Nothing else in the project knows that this model is small.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers

from pipelines.checker_folder import FOLDER_NAME
from pipelines.compat import declare_torchvision_operators
from pipelines.tools.colour_classifier import write_colour_classifier
from pipelines.tools.klein_model import write_klein
from pipelines.tools.model_parts import (
    SPECIAL_TOKENS,
    build_encoder_config,
    build_processor,
    build_scheduler,
    open_to_all_readers,
    whole_folder,
)
from pipelines.tools.tiny_parts import TEXT_WIDTH, build_transformer, build_vae, randomise
from pipelines.types import TURBO_LORA_PATH, Model

MANIFEST_NAME = "demo_model.json"
"""Lists every other file with its size in bytes. Its presence means that the folder is whole."""

TURBO_LORA_KEY = "transformer.{layer}.lora_{side}.weight"
"""How it names a layer's pair: side A down, B up. The layers have diffusers' names (Wan2GP issue
1936); its card loads it by `load_lora_weights`, which needs the prefix before them."""

_FORMAT = 3  # counted up whenever the files change, so that an old demo model is not mistaken
_LORA_RANK = 4  # the real file has 256


def write_demo_model(folder: Path, seed: int = 0, model: Model = Model.DEV) -> None:
    """Write the model to `folder`: a few megabytes, the same bytes for the same seed.

    It appears there whole or not at all. The same demo model, if it is whole, is left as it is.
    Raises `FileExistsError` if anything else is in the folder.
    """
    if has_demo_model(folder, seed, model):
        return
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty and holds no demo model of this version")
    declare_torchvision_operators()
    with whole_folder(folder) as unfinished:
        with torch.random.fork_rng(devices=[]):
            _write_components(unfinished, seed, model)
        manifest = json.dumps(_manifest(unfinished, seed, model), indent=2)
        (unfinished / MANIFEST_NAME).write_text(manifest + "\n", encoding="utf-8")


def has_demo_model(folder: Path, seed: int = 0, model: Model = Model.DEV) -> bool:
    """Whether `folder` holds all that this version writes, by names and sizes."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == _manifest(folder, seed, model))


def _manifest(folder: Path, seed: int, model: Model) -> dict[str, Any]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(paths)}
    return {"format": _FORMAT, "model": model.value, "seed": seed, "files": files}


def _write_components(folder: Path, seed: int, model: Model) -> None:
    random = torch.Generator().manual_seed(seed)
    if model is Model.DEV:
        _write_dev(folder, random)
    else:
        write_klein(
            folder,
            random,
            is_distilled=model in (Model.KLEIN_4B, Model.KLEIN_9B),
            is_tied=model in (Model.KLEIN_4B, Model.KLEIN_4B_BASE),
        )
    write_colour_classifier(folder / FOLDER_NAME)
    open_to_all_readers(folder)


def _write_dev(folder: Path, random: torch.Generator) -> None:
    transformer = build_transformer(random, guidance_embeds=True)
    processor = build_processor()
    pipeline = diffusers.Flux2Pipeline(
        scheduler=build_scheduler(),
        vae=build_vae(random),
        text_encoder=_build_text_encoder(len(processor.tokenizer), random),
        tokenizer=processor,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    lora = folder / TURBO_LORA_PATH
    lora.parent.mkdir()
    safetensors.torch.save_file(_build_turbo_lora(transformer, random), lora)


def _build_text_encoder(vocab_size: int, random: torch.Generator) -> Any:
    language = transformers.MistralConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=32,  # the pipeline reads 10, 20 and 30: none may be the last
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
    )
    config = build_encoder_config(language)
    text_encoder = transformers.Mistral3ForConditionalGeneration(config)
    randomise(text_encoder, random, {})
    return text_encoder


def turbo_lora_layers(transformer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Name the layers that `flux.2-turbo-lora.safetensors` of fal/FLUX.2-dev-Turbo has pairs for.

    That file was not at hand, but public traces of it agree: 170 pairs (flux-2-swift-mlx pull
    request 15). In the real model the blocks' attention layers are 160, and outside the blocks are
    eleven. Without `norm_out`, at rank 256 in bfloat16, that is to within 8 bytes of header the
    2,760,814,872 bytes of its conversion Flux2TurboComfyv2 (diffusers issue 13484 is about a
    conversion); no other choice fits, nor is there room for alphas.
    """
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not (name.startswith("norm_out") or ".ff." in name or ".ff_context." in name)
    }


def _build_turbo_lora(
    transformer: torch.nn.Module, random: torch.Generator
) -> dict[str, torch.Tensor]:
    lora = {}
    for name, module in turbo_lora_layers(transformer).items():
        down = torch.randn(_LORA_RANK, module.in_features, generator=random)
        up = torch.randn(module.out_features, _LORA_RANK, generator=random)
        # Scaled so that the pair changes what a layer puts out by about a tenth.
        down *= 0.1 * (module.in_features * _LORA_RANK) ** -0.5
        for side, tensor in (("A", down), ("B", up)):
            lora[TURBO_LORA_KEY.format(layer=name, side=side)] = tensor.to(torch.bfloat16)
    return lora


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a very small FLUX.2. Exits with 2 if something else is in its place."""
    parser = argparse.ArgumentParser(prog="demo-model", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to write it; must be empty or new")
    parser.add_argument("--seed", type=int, default=0, help="draws other weights")
    parser.add_argument("--model", type=Model, choices=list(Model), default=Model.DEV)
    options = parser.parse_args(arguments)
    folder, seed, model = options.folder, options.seed, options.model
    transformers.logging.disable_progress_bar()  # in this process only, which ends here
    was_there = has_demo_model(folder, seed, model)
    try:
        write_demo_model(folder, seed, model)
    except FileExistsError as error:
        print(f"demo-model: {error}", file=sys.stderr)
        return 2
    size_bytes = sum(_manifest(folder, seed, model)["files"].values())
    did = "was already" if was_there else "is now"
    print(f"the demo model {did} in {folder} ({size_bytes / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
