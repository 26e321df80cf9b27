"""Which models this box has, in which folders, and which device serves which.

Read from the operator's words; nothing here looks into a folder.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.types import Model

MODEL_NAMES = ", ".join(Model)
PIN_SEPARATOR = "+"


@dataclass(frozen=True, slots=True)
class Place:
    """One runner: its device, and the models that it may load, the first one first."""

    device: str
    models: tuple[Model, ...]


def read_folders(items: Iterable[str]) -> dict[Model, Path]:
    """Read `NAME=FOLDER` pairs. Raises `ValueError` that says what is wrong with one."""
    folders: dict[Model, Path] = {}
    for item in items:
        name, separator, folder = (part.strip() for part in item.partition("="))
        if not separator or not folder:
            raise ValueError(f"{item!r} is not NAME=FOLDER")
        model = read_model(name)
        if model in folders:
            raise ValueError(f"{model} has two folders")
        folders[model] = Path(folder)
    return folders


def read_place(entry: str, served: Collection[Model]) -> Place:
    """Read a device, such as `cuda:0`, or one with its models, such as `cuda:0=dev+klein-4b`.

    Without any it may load all that are `served`. Raises `ValueError` for a model that is not, and
    for no device.
    """
    device, separator, names = (part.strip() for part in entry.partition("="))
    if not device:
        raise ValueError(f"{entry!r} names no device")
    if not separator:
        return Place(device, tuple(served))
    models = tuple(dict.fromkeys(read_model(name.strip()) for name in names.split(PIN_SEPARATOR)))
    for model in models:
        if model not in served:
            raise ValueError(f"{entry!r}: {model} has no folder, so it cannot be loaded")
    return Place(device, models)


def check_places(places: Collection[Place], served: Collection[Model]) -> None:
    """Raise `ValueError` for a model that has no device to run on, and for a card named twice.

    Two runners on one card would each plan for all of its memory.
    """
    cards = ["cuda:0" if place.device == "cuda" else place.device for place in places]
    for card in cards:
        if card.startswith("cuda") and cards.count(card) > 1:
            raise ValueError(f"{card} is named twice: join its models with {PIN_SEPARATOR!r}")
    reachable = {model for place in places for model in place.models}
    for model in served:
        if model not in reachable:
            raise ValueError(f"no device serves {model}: each is kept for other models")


def devices_of(places: Iterable[Place], model: Model) -> list[str]:
    """Return the devices that may load a model."""
    return [place.device for place in places if model in place.models]


def read_model(name: str) -> Model:
    """Return the model of this name. Raises `ValueError`, which lists all names."""
    try:
        return Model(name)
    except ValueError:
        raise ValueError(f"{name!r} is no model; there are {MODEL_NAMES}") from None


def all_folders(first: Path | None, named: Mapping[Model, Path]) -> dict[Model, Path]:
    """Return the folder of every model that is served: [dev]'s own setting, and those named."""
    return {**({Model.DEV: first} if first else {}), **named}
