"""What a safety checker's folder holds, told without loading it: its kind, labels and damage.

No torch here, so that the server can refuse to start in a second.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import CheckerUnavailableError
from pipelines.headers import problem_of, weight_files

FOLDER_NAME = "safety_checker"
"""Where a model folder has its checker, if it has one; diffusers gives it this name too."""

STABLE_DIFFUSION = "StableDiffusionSafetyChecker"
"""The class of CompVis' checker, which compares an image with concepts instead of labelling it."""

CLASSIFIER_SUFFIX = "ForImageClassification"
"""How the names of transformers' image classifiers end."""

CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_STEM = "config.json", "preprocessor_config.json", "model"

UNSAFE_WORDS = frozenset(
    {
        *("nsfw", "unsafe", "explicit", "porn", "pornography", "hentai", "sexy", "sexual"),
        *("nude", "nudity", "gore", "violence", "violent"),
    }
)
"""Words in a label that make it an unsafe one, unless the operator names the labels."""

NEGATIONS = frozenset({"no", "non", "not"})
"""Words that turn a label such as `not_nsfw` around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckerFolder:
    """A folder that can be loaded, as far as names, sizes and headers tell.

    `labels` are all that a classifier gives, in their order, `unsafe` those among them that count
    as unsafe; CompVis' checker has neither.
    """

    path: Path
    architecture: str
    labels: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Name the checker for people: its folder, its class, and what it looks for."""
        what = ", ".join(self.unsafe) or "its concepts"
        return f"{self.path.name} ({self.architecture}: {what})"


def read_checker_folder(folder: Path, unsafe: Sequence[str] = ()) -> CheckerFolder:
    """Read what is in the folder; `unsafe` replaces the choice of labels by their names.

    Raises `CheckerUnavailableError` for a folder that is missing, not whole, of no known kind, or
    without an unsafe label.
    """
    try:
        problems = list(_find_problems(folder))
        if problems:
            raise CheckerUnavailableError("\n".join(problems))
        config: dict[str, Any] = _read(folder / CONFIG_NAME)
    except OSError as error:
        raise CheckerUnavailableError(f"{folder}: cannot be read: {error.strerror}") from error
    architecture = _architecture_of(config)
    if architecture == STABLE_DIFFUSION:
        if unsafe:
            raise CheckerUnavailableError(f"{folder}: {architecture} has no labels to choose from")
        return CheckerFolder(path=folder, architecture=architecture)
    if not architecture.endswith(CLASSIFIER_SUFFIX):
        raise CheckerUnavailableError(
            f"{folder / CONFIG_NAME}: {architecture or 'no architecture'} is neither an image "
            f"classifier of transformers nor {STABLE_DIFFUSION}"
        )
    labels = _read_labels(folder, config)
    return CheckerFolder(
        path=folder,
        architecture=architecture,
        labels=labels,
        unsafe=_choose_unsafe(folder, labels, unsafe),
    )


def is_unsafe(label: str) -> bool:
    """Say whether a label counts as unsafe by its name: by words, not by parts of words."""
    words = set(re.split(r"[^a-z]+", label.casefold()))
    return bool(words & UNSAFE_WORDS) and not words & NEGATIONS


def _find_problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder}: no such folder"
        return
    for name in (CONFIG_NAME, PROCESSOR_NAME):
        path = folder / name
        if not path.is_file():
            yield f"{path}: missing"
            continue
        try:
            content = _read(path)
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            yield f"{path}: not a JSON object that can be read"
    for path in weight_files(folder, WEIGHTS_STEM):
        problem = problem_of(path)
        if problem:
            yield f"{path}: {problem}"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _architecture_of(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return ""


def _read_labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Return the labels in the order of the classifier's outputs."""
    by_number = config.get("id2label")
    try:
        return tuple(str(by_number[str(number)]) for number in range(len(by_number)))  # type: ignore[index,arg-type]
    except (TypeError, KeyError):
        message = "id2label does not name the outputs, 0 to the last"
        raise CheckerUnavailableError(f"{folder / CONFIG_NAME}: {message}") from None


def _choose_unsafe(folder: Path, labels: tuple[str, ...], wanted: Sequence[str]) -> tuple[str, ...]:
    there = ", ".join(labels)
    unknown = [label for label in wanted if label not in labels]
    if unknown:
        raise CheckerUnavailableError(
            f"{folder}: no label {', '.join(unknown)}; its labels are {there}"
        )
    unsafe = tuple(label for label in labels if (label in wanted if wanted else is_unsafe(label)))
    if not unsafe:
        raise CheckerUnavailableError(
            f"{folder}: none of its labels is known as unsafe, so it would find nothing; say which "
            f"are, of {there}"
        )
    if len(labels) > 1 and len(unsafe) == len(labels):
        raise CheckerUnavailableError(
            f"{folder}: all of its labels would be unsafe, so it would flag everything; say which "
            f"are, of {there}"
        )
    return unsafe
