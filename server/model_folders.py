"""Whether a folder has the model that the operator says, and all of it. Reads no weights."""

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.errors import ModelNotFoundError
from pipelines.folder import INDEX_NAME, check_model_folder, read_kind
from pipelines.types import Model
from server.errors import ConfigurationError

CHECK_SECONDS = 5.0
LOOK_SECONDS = 10.0


def check_kind(model: Model, folder: Path) -> None:
    """Raise `ModelNotFoundError` for a folder that is another model's; one without is none's."""
    try:
        if not (folder / INDEX_NAME).exists():
            return
    except OSError as error:
        raise ModelNotFoundError(f"{folder}: cannot be read: {error}") from error
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
    there until then. Of what size a klein is no file says for certain, so that is not checked.
    """
    named: dict[str, Model] = {}
    for model, folder in folders.items():
        other = named.setdefault(os.path.realpath(folder), model)
        if other is not model:
            raise ConfigurationError(f"{other} and {model} are one folder: {folder}")
    for model, folder in folders.items():
        try:
            check_kind(model, folder)
        except ModelNotFoundError as error:
            raise ConfigurationError(f"the folder of {model} cannot be used: {error}") from error


class FolderChecks:
    """Whether each folder can be loaded from.

    A disk that hangs holds one thread for each model, none of those that others need, and nobody
    for longer than `LOOK_SECONDS`.
    """

    def __init__(self, folders: Mapping[Model, Path], clock: Callable[[], float]) -> None:
        self._folders = folders
        self._clock = clock
        self._found: dict[Model, tuple[float, str | None]] = {}
        self._looks: dict[Model, asyncio.Future[str | None]] = {}
        self._threads = ThreadPoolExecutor(max(1, len(folders)), "model folder")

    async def problem_of(self, model: Model) -> str | None:
        """Say what is missing or broken in the folder of a model, or None.

        Looks only now and then: callers may ask often.
        """
        if model not in self._found or self._clock() - self._found[model][0] >= CHECK_SECONDS:
            problem = await self.look(model)
            self._found[model] = self._clock(), problem
        return self._found[model][1]

    async def look(self, model: Model) -> str | None:
        """Say the same as it is now."""
        look = self._looks.get(model)
        if look is None or look.done():
            loop = asyncio.get_running_loop()
            look = loop.run_in_executor(self._threads, self._check, model)
            self._looks[model] = look
        try:
            return await asyncio.wait_for(asyncio.shield(look), LOOK_SECONDS)
        except TimeoutError:
            return f"{self._folders[model]}: cannot be read in {LOOK_SECONDS:g} seconds"

    def _check(self, model: Model) -> str | None:
        try:
            check_whole(model, self._folders[model])
        except ModelNotFoundError as error:
            return str(error)
        return None
