"""What the files of the command line share: options, settings, and an end with a reason."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipelines.demonstration import DEMO_CHECKPOINT
from server.errors import ConfigurationError
from server.settings import Settings, load_settings

ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file of settings.")]


def _read_none(folder: Path | None) -> Path | None:
    """Take `none` for the demonstration checkpoint, as the setting does."""
    return DEMO_CHECKPOINT if str(folder).lower() == "none" and folder else folder


ModelOption = Annotated[
    Path | None,
    typer.Option(
        callback=_read_none,
        help="The model's diffusers folder; else the demonstration checkpoint.",
    ),
]
DataDirOption = Annotated[Path | None, typer.Option(help="Queue, files, certificates, caches.")]


def load(**flags: Any) -> Settings:
    """Return the settings, or end with every mistake in them."""
    try:
        return load_settings(flags)
    except ConfigurationError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End with a reason."""
    typer.echo(f"flux2-serve: {message}", err=True)
    raise typer.Exit(2)


def one_folder(settings: Settings) -> Path:
    """Return the model folder that a command is about, or end: it must be one."""
    folders = list(settings.folders.values())
    if len(folders) > 1:
        fail("there are several models; say which folder with --model")
    return folders[0]
