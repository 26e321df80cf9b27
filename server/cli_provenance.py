"""The commands about where images come from: `watermark`, `receipt`, `replay`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.types import LoraUse, Model, Pipeline
from server.cli_parts import ConfigOption, DataDirOption, ModelOption, fail, load
from server.errors import ConfigurationError
from server.gateway import KEYS_FOLDER
from server.loading import BUILDS_FOLDER, load_options
from server.placement import devices_of
from server.receipts.hashes import FileHashes
from server.receipts.loras import find_loras
from server.receipts.record import find_job, make_receipt, read_image, read_references
from server.receipts.replay import differences, match_references, model_of, order_of
from server.receipts.replay import load as load_pipeline
from server.receipts.replay import replay as make_again
from server.receipts.signed import (
    NotAuthenticError,
    known_keys,
    load_key,
    load_public_key,
    sign_receipt,
    verify_receipt,
)
from server.settings import Settings
from server.store import StoreUnavailableError

RECEIPTS_FOLDER = "receipts"
"""Of the folder of keys: what receipts are signed with, and whose receipts are known."""

KeyOption = Annotated[
    Path | None,
    typer.Option(help="The public key to check with; else those of the data folder."),
]


def watermark(
    files: Annotated[list[Path], typer.Argument(help="Pictures of any common format.")],
) -> None:
    """Say of each picture whether it has the watermark. Exit status 1 if one has not."""
    from server.provenance.watermark import THRESHOLD, detect  # noqa: PLC0415  (numpy)

    missing = False
    for path in files:
        try:
            with Image.open(path) as image:
                found = detect(image)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            fail(f"{path} cannot be read as a picture: {error}")
        missing |= not found.is_marked
        verdict = "watermark found" if found.is_marked else "no watermark"
        typer.echo(f"{path}: {verdict} (score {found.score}, limit {THRESHOLD})")
    if missing:
        raise typer.Exit(1)


def receipt(
    request_id: Annotated[str | None, typer.Argument(help="A request that is over.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Say whether this receipt is authentic, instead.")
    ] = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a signed receipt of how a request's images were made, or check one (exit status 1)."""
    settings = load(data_dir=data_dir, config=config)
    if (request_id is None) == (verify is None):
        fail("give the id of a request, or --verify FILE")
    if verify:
        try:
            told = _read(verify, key, settings)
        except NotAuthenticError as error:
            typer.echo(f"{verify}: not authentic: {error}")
            raise typer.Exit(1) from None
        typer.echo(f"{verify}: authentic; request {told['request_id']}")
        return
    try:
        content = make_receipt(settings, request_id or "", _hashes(settings))
        signed = sign_receipt(content, load_key(_folder(settings)))
    except (ConfigurationError, StoreUnavailableError) as error:
        fail(_reason(error))
    typer.echo(signed, nl=False)


def replay(
    paths: Annotated[list[Path], typer.Argument(metavar="RECEIPT...", help="Receipts' files.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="A reference image that is not stored any more; may be repeated."),
    ] = None,
    lora: Annotated[
        list[Path] | None, typer.Option(help="A LoRA that is not here any more; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; else as serve.")] = None,
    key: KeyOption = None,
    model: ModelOption = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Make receipts' images again. Exit status 1 if the pixels of any differ."""
    settings = load(model=model, data_dir=data_dir, config=config)
    try:
        receipts = [_read(path, key, settings) for path in paths]
        offered = _read_all(reference or ())
        references = [
            match_references(told["references"], [*_stored(settings, told), *offered])
            for told in receipts
        ]
        loras = [find_loras(settings, told, order_of(told).loras, lora or ()) for told in receipts]
        all_parts = list(zip(receipts, references, loras, strict=True))
        replayed = []
        for needed in dict.fromkeys(map(model_of, receipts)):  # one in memory at a time
            pipeline = _load(settings, needed, device)
            replayed += [
                _replay(settings, pipeline, *parts)
                for parts in all_parts
                if model_of(parts[0]) is needed
            ]
            del pipeline
    except NotAuthenticError as error:
        fail(f"not authentic: {error}")
    except (ConfigurationError, StoreUnavailableError, PipelineError) as error:
        fail(_reason(error))
    if not all(replayed):
        raise typer.Exit(1)


def _load(settings: Settings, model: Model, device: str | None) -> Pipeline:
    """Load a model as a runner does. Raises `ConfigurationError` for one that has no folder."""
    if model not in settings.folders:
        raise ConfigurationError(f"the images are of {model}: name its folder in FLUX2_MODELS")
    device = device or devices_of(settings.places, model)[0]
    return load_pipeline(settings.pipeline_factory, load_options(settings, model, device))


def _replay(
    settings: Settings,
    pipeline: Pipeline,
    told: dict[str, Any],
    references: Sequence[bytes],
    loras: tuple[LoraUse, ...],
) -> bool:
    """Make one receipt's images again, say how they compare, and whether all are identical."""

    def stored(image: Mapping[str, Any]) -> bytes | None:
        return read_image(settings, {"url": "", "file_name": image["file"]})

    identical, count = True, len(told["images"])
    limit_pixels = settings.reference_limit_pixels
    for image in make_again(told, pipeline, references, limit_pixels, stored, loras):
        identical &= image.identical
        typer.echo(f"{told['request_id']} image {image.index + 1} of {count}: {image.note}")
    if not identical:
        build = pipeline.describe(order_of(told).settings).get("build")
        for line in differences(told, settings.data_dir, build, _hashes(settings)):
            typer.echo(f"  {line}")
    return identical


def _read(path: Path, key: Path | None, settings: Settings) -> dict[str, Any]:
    """Return a receipt that is authentic. Raises `NotAuthenticError`."""
    try:
        keys = [load_public_key(key)] if key else known_keys(_folder(settings))
        return verify_receipt(path.read_bytes(), keys)
    except (OSError, ConfigurationError) as error:
        fail(str(error))


def _stored(settings: Settings, told: dict[str, Any]) -> list[bytes]:
    """Return the reference images of the request that are still in the data folder."""
    if not told["references"]:
        return []
    try:
        job, given = find_job(settings, told["request_id"])
    except (ConfigurationError, StoreUnavailableError):
        return []
    return [data for data in read_references(settings, job, given) if data is not None]


def _read_all(paths: Sequence[Path]) -> list[bytes]:
    try:
        return [path.read_bytes() for path in paths]
    except OSError as error:
        fail(str(error))


def _hashes(settings: Settings) -> FileHashes:
    def tell(path: Path) -> None:
        typer.echo(f"hashing {path}", err=True)

    return FileHashes(settings.data_dir / BUILDS_FOLDER, tell)


def _folder(settings: Settings) -> Path:
    return settings.data_dir / KEYS_FOLDER / RECEIPTS_FOLDER


def _reason(error: Exception) -> str:
    return str(error.body["detail"]) if isinstance(error, StoreUnavailableError) else str(error)
