"""From a local diffusers folder to a ready pipeline. Never from a hub, never from a pickle."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import ModelNotFoundError
from pipelines.types import LoadOptions, OnLoadProgress, Pipeline, ignore_load_progress

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


def load_pipeline(
    options: LoadOptions, on_progress: OnLoadProgress = ignore_load_progress
) -> tuple[Pipeline, str]:
    """Load the model and describe it in a few words.

    Raises `ModelNotFoundError`, before anything is loaded, naming every file that is missing or
    cut short.
    """
    check_model_folder(options.model)
    # Only now: a missing file should be told in a second, not after torch's import.
    from pipelines.compat import declare_torchvision_operators  # noqa: PLC0415

    declare_torchvision_operators()
    import diffusers  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from pipelines.assembly import assemble, keep_compiled_kernels  # noqa: PLC0415
    from pipelines.conditioning import drop_unread_layers  # noqa: PLC0415
    from pipelines.flux2 import Flux2  # noqa: PLC0415

    device = torch.device(_choose_device(options.device, has_cuda=torch.cuda.is_available()))
    dtype = getattr(torch, _choose_dtype(options.dtype, device.type))
    placement: dict[str, Any] = {}
    if device.type == "cuda":
        # Weights go straight to the card: 112 GB may not fit into main memory.
        torch.cuda.set_device(device.index or 0)
        placement = {"device_map": "cuda"}
    if options.compile_cache:
        keep_compiled_kernels(options.compile_cache)
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    # At every prompt transformers 5 warns of the way in which diffusers 0.42 calls its processor.
    transformers.logging.set_verbosity_error()
    on_progress("weights", 0.0)
    pipe = diffusers.Flux2Pipeline.from_pretrained(
        str(options.model),
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        **placement,
    )
    on_progress("weights", 1.0)
    pipe.set_progress_bar_config(disable=True)
    drop_unread_layers(pipe.text_encoder)
    description = f"{options.model.name} on {device} in {str(dtype).removeprefix('torch.')}"
    trees = assemble(pipe.transformer, device, options)
    pipeline = Flux2(pipe, device, trees, cache_bytes=options.cache_bytes)
    on_progress("warm_up", 0.0)
    pipeline.warm_up()
    on_progress("warm_up", 1.0)
    return pipeline, description


def check_model_folder(folder: Path) -> None:
    """Check that every file the model needs is there and whole; reads headers, no weights.

    Raises `ModelNotFoundError` with one line for each file that is not.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such folder")
    problems = list(_find_problems(folder))
    if problems:
        raise ModelNotFoundError("\n".join(problems))


def _find_problems(folder: Path) -> Iterator[str]:
    index = folder / "model_index.json"
    if not index.is_file():
        yield f"{index}: missing; is this a model in the diffusers layout?"
    for component, file_name in COMPONENT_FILES.items():
        path = folder / component / file_name
        if not path.is_file():
            yield f"{path}: missing"
    for component, stem in WEIGHTS.items():
        for path in _weight_files(folder / component, stem):
            problem = _problem_of(path)
            if problem:
                yield f"{path}: {problem}"


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """List the component's weight files: the shards its index names, or the single file."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return [index]  # which `_problem_of` then reports as unreadable
    return [folder / shard for shard in sorted(shards)]


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


def _choose_device(asked: str, *, has_cuda: bool) -> str:
    if asked == "auto":
        return "cuda" if has_cuda else "cpu"
    if asked.startswith("cuda") and not has_cuda:
        raise ModelNotFoundError(f"device {asked} was asked for, but torch finds no CUDA device")
    return asked


def _choose_dtype(asked: str, device_type: str) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if device_type == "cuda" else "float32"
