"""A model folder in the diffusers layout: what must be in it, and whether it is whole. No torch."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import ModelNotFoundError
from pipelines.headers import problem_of, weight_files

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
    return weight_files(folder / component, WEIGHTS[component])


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
            problem = problem_of(path)
            if problem:
                yield f"{path}: {problem}"
