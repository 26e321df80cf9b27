"""A model folder in the diffusers layout: what must be in it, and whether it is whole. No torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipelines.errors import ModelNotFoundError
from pipelines.headers import problem_of, weight_files
from pipelines.types import Model

INDEX_NAME = "model_index.json"
"""Names the parts of a model and the pipeline that they are for."""

COMPONENT_FILES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
"""The parts of every FLUX.2, each a sub-folder, and the file that describes each."""

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The parts that have weights, and how their safetensors files are called."""


class Architecture(StrEnum):
    """What a folder is a model of, by the name that diffusers gives its pipeline."""

    DEV = "Flux2Pipeline"
    KLEIN = "Flux2KleinPipeline"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model folder says that it is.

    `is_distilled` is whether guidance is in the weights: then no second pass leads away from a
    negative prompt. [dev] always has it there. How large a klein is, the index does not say.
    """

    architecture: Architecture
    is_distilled: bool

    @property
    def can_write(self) -> bool:
        """Whether the text encoder may be more than a reader of prompts: expand them, and judge.

        klein's Qwen3 sees no pictures, and was not chosen to write.
        """
        return self.architecture is Architecture.DEV

    @property
    def has_flash(self) -> bool:
        """Whether there is an eight-step LoRA for it."""
        return self.architecture is Architecture.DEV

    @property
    def description(self) -> str:
        """The kind in words."""
        if self.architecture is Architecture.DEV:
            return "FLUX.2 [dev]"
        return f"FLUX.2 [klein], {'distilled' if self.is_distilled else 'base'}"

    def can_serve(self, model: Model) -> bool:
        """Whether a folder of this kind may be what the operator says it is."""
        if model is Model.DEV:
            return self.architecture is Architecture.DEV
        is_base = model in (Model.KLEIN_4B_BASE, Model.KLEIN_9B_BASE)
        return self.architecture is Architecture.KLEIN and self.is_distilled is not is_base


def read_kind(folder: Path) -> Kind:
    """Read what kind of FLUX.2 is in a folder, by its `model_index.json` alone.

    Raises `ModelNotFoundError` for an index that is missing, broken, or another model's.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: missing; is this a model in the diffusers layout?"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error}") from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in list(Architecture):
        known = " or ".join(Architecture)
        raise ModelNotFoundError(f"{path}: a model for {name}, not for {known}")
    architecture = Architecture(name)
    # What diffusers leaves out of the file is its pipeline's default.
    is_distilled = architecture is Architecture.DEV or bool(index.get("is_distilled", False))
    return Kind(architecture, is_distilled)


def check_model_folder(folder: Path) -> None:
    """Check that every file the model needs is there and whole; reads headers, no weights.

    Raises `ModelNotFoundError` with one line for each file that is not.
    """
    try:
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder}: no such folder")
        problems = list(_find_problems(folder))
    except OSError as error:  # of a file that is merely not there nothing raises
        raise ModelNotFoundError(f"{folder}: cannot be read: {error}") from error
    if problems:
        raise ModelNotFoundError("\n".join(problems))


def list_weight_files(folder: Path, component: str) -> list[Path]:
    """List a component's weight files: the shards that its index names, or the single file."""
    return weight_files(folder / component, WEIGHTS[component])


def _find_problems(folder: Path) -> Iterator[str]:
    try:
        read_kind(folder)
    except ModelNotFoundError as error:
        yield str(error)
    for component, file_name in COMPONENT_FILES.items():
        path = folder / component / file_name
        if not path.is_file():
            yield f"{path}: missing"
    for component in WEIGHTS:
        for path in list_weight_files(folder, component):
            problem = problem_of(path)
            if problem:
                yield f"{path}: {problem}"
