"""Whether a folder has the model that the operator says, and all of it. Reads no weights."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.errors import ModelNotFoundError
from pipelines.folder import INDEX_NAME, check_model_folder, read_kind
from pipelines.types import Model
from server.errors import ConfigurationError

CHECK_SECONDS = 5.0


def check_kind(model: Model, folder: Path) -> None:
    """Raise `ModelNotFoundError` for a folder that is another model's; one without is none's."""
    if not (folder / INDEX_NAME).exists():
        return
    kind = read_kind(folder)
    if not kind.can_serve(model):
        distilled = "distilled" if kind.is_distilled else "not distilled"
        raise ModelNotFoundError(
            f"{folder / INDEX_NAME}: a {kind.architecture} ({distilled}), so this is not {model}"
        )


def check_whole(model: Model, folder: Path) -> None:
    """Raise `ModelNotFoundError` for a folder from which this model cannot be loaded."""
    check_model_folder(folder)
    check_kind(model, folder)


def check_kinds(folders: Mapping[Model, Path]) -> None:
    """Refuse to start with a folder under another model's name: its images would not be its own.

    Raises `ConfigurationError`. What is missing is told when the model is loaded: it may be put
    there until then.
    """
    for model, folder in folders.items():
        try:
            check_kind(model, folder)
        except ModelNotFoundError as error:
            raise ConfigurationError(f"the folder of {model} cannot be used: {error}") from error


class FolderChecks:
    """Whether each folder can be loaded from, looked at now and then: callers may ask often."""

    def __init__(self, folders: Mapping[Model, Path], clock: Callable[[], float]) -> None:
        self._folders = folders
        self._clock = clock
        self._found: dict[Model, tuple[float, str | None]] = {}

    async def problem_of(self, model: Model) -> str | None:
        """Say what is missing or broken in the folder of a model, or None."""
        now = self._clock()
        if model not in self._found or now - self._found[model][0] >= CHECK_SECONDS:
            self._found[model] = now, await asyncio.to_thread(self._look, model)
        return self._found[model][1]

    def _look(self, model: Model) -> str | None:
        try:
            check_whole(model, self._folders[model])
        except ModelNotFoundError as error:
            return str(error)
        return None
