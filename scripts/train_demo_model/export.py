"""Writes a trained model as a checkpoint folder: the layout that diffusers loads, and extras."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch

from pipelines.declaration import DECLARATION_NAME, Declaration
from pipelines.tools.model_parts import build_scheduler, open_to_all_readers, whole_folder
from pipelines.types import TURBO_LORA_PATH
from scripts.train_demo_model.classifier import FOLDER_NAME as CLASSIFIER_FOLDER_NAME

LARGEST_BYTES = 25_000_000
"""The checkpoint lies in the repository, which everyone copies; it must not be larger."""


def write_checkpoint(
    folder: Path,
    *,
    transformer: Any,
    vae: Any,
    text_encoder: Any,
    processor: Any,
    lora: Mapping[str, torch.Tensor],
    classifier_folder: Path,
) -> None:
    """Write the parts to `folder`, all weights as safetensors that every user may read.

    Transformer and VAE are converted, in place, to bfloat16 and the text encoder to float32, the
    types they are stored in. The LoRA's tensors are stored as they are. The folder appears whole
    or not at all.

    Raises `FileExistsError` if `folder` is there and not empty, `ValueError` if what would be
    written is larger than `LARGEST_BYTES`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already")
    pipeline = diffusers.Flux2Pipeline(
        scheduler=build_scheduler(),
        vae=vae.cpu().bfloat16(),
        text_encoder=text_encoder.cpu().float(),
        tokenizer=processor,
        transformer=transformer.cpu().bfloat16(),
    )
    with whole_folder(folder) as unfinished:
        pipeline.save_pretrained(unfinished, safe_serialization=True)
        _forget_origins(unfinished)
        path = unfinished / TURBO_LORA_PATH
        path.parent.mkdir()
        safetensors.torch.save_file({key: lora[key].contiguous() for key in sorted(lora)}, path)
        declaration = Declaration(expander=False)  # the encoder was trained to read only
        text = declaration.model_dump_json(indent=2) + "\n"
        (unfinished / DECLARATION_NAME).write_text(text, encoding="utf-8")
        shutil.copytree(classifier_folder, unfinished / CLASSIFIER_FOLDER_NAME)
        open_to_all_readers(unfinished)
        size = size_bytes(unfinished)
        if size > LARGEST_BYTES:
            raise ValueError(f"the checkpoint has {size} bytes, more than {LARGEST_BYTES}")


def _forget_origins(folder: Path) -> None:
    """Drop from diffusers' configs the folders that the parts were loaded from."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def size_bytes(folder: Path) -> int:
    """Add up the sizes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
