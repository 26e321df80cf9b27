"""The command `flux2-serve`: one function for each sub-command."""

import asyncio
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import structlog
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from pipelines.demonstration import DEMO_SUBJECTS, is_demo_checkpoint
from pipelines.types import Model
from server.app import create_app
from server.c2pa_certs import C2PA_FOLDER, C2paFiles, ensure_c2pa_certificates
from server.certs import TlsFiles, ensure_certificates
from server.cli_parts import (
    ConfigOption,
    DataDirOption,
    ModelOption,
    fail,
    load,
    one_folder,
)
from server.cli_provenance import receipt, replay, watermark
from server.client_env import Box, Mode, client_env
from server.errors import ConfigurationError
from server.gateway import KEYS_FOLDER
from server.keyfile import KeyFile, KeyLimits, SafetyRule, StoredKey
from server.listen import serve as serve_app
from server.machine import is_address, machine_names
from server.marking import check_marking
from server.memory import give_large_blocks_back
from server.names import WILDCARD_HOSTS, configured_names, tls_folder
from server.safety import describe_safety, find_checker
from server.settings import Settings
from server.store import StoreCorruptError, StoreLockedError, StoreUnavailableError
from server.telemetry import configure_logging

log = structlog.get_logger(__name__)

app = typer.Typer(
    help="FLUX.2 on your own GPU box behind fal.ai's API.",
    no_args_is_help=True,
    add_completion=False,
)

keys_app = typer.Typer(help="Make, list and revoke the keys of callers.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

weights_app = typer.Typer(help="Prepare a model's weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

app.command()(receipt)
app.command()(replay)
app.command()(watermark)

DEFAULT_QUEUED_JOBS = 100
"""A tenth of what the queue holds by default, so that no key can fill it for the others."""

HostOption = Annotated[str | None, typer.Option(help="The address to listen on.")]
PortOption = Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")]
TlsPortOption = Annotated[
    str | None, typer.Option(help="HTTPS port; 0 picks a free one, `none` switches it off.")
]


@app.command()
def serve(
    model: ModelOption = None,
    data_dir: DataDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    tls_port: TlsPortOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve the model. Every option is also a setting: FLUX2_MODEL, FLUX2_DATA_DIR, ..."""
    settings = load(
        model=model, data_dir=data_dir, host=host, port=port, tls_port=tls_port, config=config
    )
    configure_logging(settings.log_level)
    give_large_blocks_back()
    try:
        check_marking(settings)
        application = create_app(settings)
        make_tls = partial(_certificates, settings) if settings.tls_port is not None else None
        _print_start(settings, make_tls() if make_tls else None)
        asyncio.run(serve_app(application, settings, make_tls))
    except (ConfigurationError, StoreLockedError, StoreCorruptError) as error:
        fail(str(error))
    except StoreUnavailableError as error:
        fail(error.body["detail"])


@app.command("demo-model")
def demo_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    model: Annotated[Model, typer.Option(help="Which of the family it is built like.")] = Model.DEV,
) -> None:
    """Write a tiny FLUX.2 with random weights: quicker than what `serve` has, and draws noise."""
    command = [sys.executable, "-P", "-m", "pipelines.tools.demo_model", str(folder)]
    command += ["--model", model.value]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603


@app.command()
def doctor(
    model: ModelOption = None,
    profile: Annotated[
        str | None, typer.Option(help="How the model is laid out in memory, if it is to fit so.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    config: ConfigOption = None,
) -> None:
    """Say whether the model is whole, what this machine has, and what of it fits where."""
    settings = load(config=config, profile=profile)
    codes = []
    for name, folder in ({Model.DEV: model} if model else settings.folders).items():
        devices = [p.device for p in settings.places if model or name in p.models]
        command = [sys.executable, "-P", "-m", "pipelines.tools.doctor"]
        command += ["--model", str(folder), "--dtype", settings.dtype]
        command += ["--profile", settings.profile]
        command += [f"--device={device}" for device in devices]
        if settings.flash_lora and name is Model.DEV:
            command.append(f"--flash-lora={settings.flash_lora}")
        command += ["--json"] if as_json else []
        codes.append(subprocess.run(command, check=False).returncode)  # noqa: S603
    raise typer.Exit(next(filter(None, codes), 0))


@weights_app.command("quantize")
def quantize(
    model: ModelOption = None,
    precision: Annotated[
        str, typer.Option(help="`fp8`, for cards from Ada on, or `int8`, for Ampere.")
    ] = "fp8",
    config: ConfigOption = None,
) -> None:
    """Write the transformer's blocks in 8 bits into the model folder, for faster starts."""
    settings = load(config=config)
    command = [sys.executable, "-P", "-m", "pipelines.tools.quantise"]
    command += ["--model", str(model or one_folder(settings)), "--precision", precision]
    command += ["--dtype", "bfloat16" if settings.dtype == "auto" else settings.dtype]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603


@app.command()
def certs(
    data_dir: DataDirOption = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A further host name or address; may be repeated.")
    ] = None,
    c2pa: Annotated[
        bool, typer.Option("--c2pa", help="One to try Content Credentials with, instead.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Make the certificate authority and the server's certificate, or renew what is due."""
    settings = load(data_dir=data_dir, config=config)
    try:
        if c2pa:
            _print_c2pa(ensure_c2pa_certificates(settings.data_dir / C2PA_FOLDER))
            return
        files = _certificates(settings, *(name or ()))
    except ConfigurationError as error:
        fail(str(error))
    typer.echo(f"CA (give this to clients): {files.ca_path}")
    typer.echo(f"certificate: {files.certificate_path}")


@app.command("client-env")
def print_client_env(
    mode: Annotated[
        Mode,
        typer.Option(help="By the client's own settings, by a proxy, or by a hosts file."),
    ] = Mode.ENV,
    data_dir: DataDirOption = None,
    host: Annotated[str | None, typer.Option(help="The name clients reach this box by.")] = None,
    port: PortOption = None,
    tls_port: TlsPortOption = None,
    config: ConfigOption = None,
) -> None:
    """Print the lines to paste so that fal's clients talk to this server."""
    settings = load(data_dir=data_dir, port=port, tls_port=tls_port, config=config)
    box = Box(
        host=host or _default_client_host(settings, mode),
        port=settings.port,
        tls_port=settings.tls_port,
        connect_port=settings.connect_port,
        ca_path=(tls_folder(settings) / "ca.pem").resolve(),
        key=_key_to_show(settings),
        public_host=urlsplit(settings.public_url or "").hostname,
    )
    try:
        typer.echo(client_env(box, mode))
    except ConfigurationError as error:
        fail(str(error))


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Whom or what it is for, to find it again.")],
    queued_jobs: Annotated[
        int, typer.Option(min=0, help="Most requests in the queue; 0 for no limit.")
    ] = DEFAULT_QUEUED_JOBS,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Most requests a minute; 0 for no limit.")
    ] = 0,
    storage_bytes: Annotated[
        str, typer.Option(help="Most that its uploads may take, such as 5GiB; 0 for no limit.")
    ] = "0",
    safety: Annotated[
        SafetyRule | None,
        typer.Option(help="Whether its images are checked, whatever the server's own rule is."),
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and show it, this once. A running server takes it within a second or two."""
    limits = KeyLimits(
        queued_jobs=queued_jobs or None,
        requests_per_minute=requests_per_minute or None,
        storage_bytes=_read_size(storage_bytes) or None,
        safety=safety,
    )
    file = _key_file(data_dir, config)
    try:
        key, secret = file.create(name, limits, time.time())
    except ConfigurationError as error:
        fail(str(error))
    typer.echo(f"FAL_KEY={key.id}:{secret}")
    typer.echo(
        "This is the only time it is shown. Programs with fal's clients take it from the\n"
        'environment; everything else sends it as "Authorization: Key ..." with what follows\n'
        f"FAL_KEY=. To withdraw it: flux2-serve keys revoke {key.id}",
        err=True,
    )


@keys_app.command("list")
def list_keys(data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """List all keys, revoked ones too, without their secrets."""
    file = _key_file(data_dir, config)
    try:
        keys = file.read()
    except ConfigurationError as error:
        fail(str(error))
    head = ("ID", "NAME", "CREATED", "QUEUED", "PER MINUTE", "STORAGE", "SAFETY", "STATE")
    rows = [head, *map(_key_row, keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The part of the key before the colon.")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Withdraw a key. Its requests and files stay until they expire."""
    file = _key_file(data_dir, config)
    try:
        key = file.revoke(key_id.partition(":")[0], time.time())
    except ConfigurationError as error:
        fail(str(error))
    typer.echo(f"revoked: {key.id} {key.name}")


def main() -> None:
    """Run the command line."""
    app()


def _key_to_show(settings: Settings) -> str | None:
    """Return the key for a recipe; those of the key file are known to their holders alone."""
    if settings.api_key:
        return settings.api_key.get_secret_value()
    try:
        return "ID:SECRET" if KeyFile(settings.data_dir / KEYS_FOLDER).read() else None
    except ConfigurationError as error:
        fail(str(error))


def _key_file(data_dir: Path | None, config: Path | None) -> KeyFile:
    return KeyFile(load(data_dir=data_dir, config=config).data_dir / KEYS_FOLDER)


def _key_row(key: StoredKey) -> tuple[str, ...]:
    limits = key.limits
    return (
        key.id,
        key.name,
        _day(key.created_at),
        str(limits.queued_jobs or "-"),
        str(limits.requests_per_minute or "-"),
        ByteSize(limits.storage_bytes).human_readable() if limits.storage_bytes else "-",
        limits.safety or "-",
        "active" if key.revoked_at is None else f"revoked {_day(key.revoked_at)}",
    )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _read_size(text: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is not a size such as 500MB or 5GiB") from None


def _certificates(settings: Settings, *further_names: str) -> TlsFiles:
    """Make or renew the certificates, also in the names that the settings have."""
    return ensure_certificates(tls_folder(settings), [*configured_names(settings), *further_names])


def _default_client_host(settings: Settings, mode: Mode) -> str:
    """Name this box as others see it when it listens to others, else as localhost.

    A hosts file needs an address; the machine's own names come before its addresses.
    """
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return settings.host if mode is Mode.HOSTS else "localhost"
    if settings.host not in WILDCARD_HOSTS:
        return settings.host
    names = machine_names()
    return next(filter(is_address, names)) if mode is Mode.HOSTS else names[0]


def _print_c2pa(files: C2paFiles) -> None:
    typer.echo(f"CA (readers trust the pictures only with this): {files.ca_path.resolve()}")
    typer.echo(f"FLUX2_C2PA_CERT={files.certificate_path.resolve()}")
    typer.echo(f"FLUX2_C2PA_KEY={files.key_path.resolve()}")


def _print_start(settings: Settings, tls: TlsFiles | None) -> None:
    """Say at start what an operator must know before the first request."""
    for name, folder in settings.folders.items():
        if is_demo_checkpoint(folder):
            typer.echo(f"model: the demonstration checkpoint; it draws {DEMO_SUBJECTS}")
            log.warning(
                "this is the demonstration checkpoint, and its pictures are not filtered; give the "
                "folder of FLUX.2 [dev] as --model or FLUX2_MODEL for real ones",
                model=str(folder),
                draws=DEMO_SUBJECTS,
            )
        else:
            typer.echo(f"model: {folder}" if name is Model.DEV else f"model {name}: {folder}")
    typer.echo(f"safety: {describe_safety(settings, find_checker(settings))}")
    if tls:
        typer.echo(f"CA for clients: {tls.ca_path.resolve()}")
