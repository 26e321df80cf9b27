"""A model folder in the diffusers layout: what must be in it, and whether it is whole. No torch."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import ModelNotFoundError

COMPONENT_FILES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
"""The parts of FLUX.2 [dev], each a sub-folder, and the file that describes each."""

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The parts that have weights, and how their safetensors files are called."""


def check_model_folder(folder: Path) -> None:
    """Check that every file the model needs is there and whole; reads headers, no weights.

    Raises `ModelNotFoundError` with one line for each file that is not.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such folder")
    problems = list(_find_problems(folder))
    if problems:
        raise ModelNotFoundError("\n".join(problems))


def list_weight_files(folder: Path, component: str) -> list[Path]:
    """List a component's weight files: the shards that its index names, or the single file."""
    stem = WEIGHTS[component]
    index = folder / component / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / component / f"{stem}.safetensors"]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return [index]  # which is then reported as unreadable
    return [folder / component / shard for shard in sorted(shards)]


def _find_problems(folder: Path) -> Iterator[str]:
    index = folder / "model_index.json"
    if not index.is_file():
        yield f"{index}: missing; is this a model in the diffusers layout?"
    for component, file_name in COMPONENT_FILES.items():
        path = folder / component / file_name
        if not path.is_file():
            yield f"{path}: missing"
    for component in WEIGHTS:
        for path in list_weight_files(folder, component):
            problem = _problem_of(path)
            if problem:
                yield f"{path}: {problem}"


def _problem_of(path: Path) -> str | None:
    """Say what is wrong with a safetensors file, by its header: a length, then JSON offsets.

    Format: https://github.com/huggingface/safetensors#format.
    """
    if not path.is_file():
        return "missing"
    size_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size_bytes:
                return "not a whole safetensors file"
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, IndexError):
        return "not a safetensors file"
    expected_bytes = 8 + header_bytes + max(ends, default=0)
    if size_bytes != expected_bytes:
        return f"cut short: {size_bytes} bytes of {expected_bytes}"
    return None
