"""The command `flux2-serve`: one function for each sub-command."""

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from server.app import create_app
from server.certs import TlsFiles, ensure_certificates
from server.client_env import Box, Mode, client_env
from server.errors import ConfigurationError
from server.listen import serve as serve_app
from server.machine import is_address, machine_names
from server.names import WILDCARD_HOSTS, configured_names, tls_folder
from server.settings import Settings, load_settings
from server.store import StoreCorruptError, StoreLockedError, StoreUnavailableError
from server.telemetry import configure_logging

app = typer.Typer(
    help="FLUX.2 on your own GPU box behind fal.ai's API.",
    no_args_is_help=True,
    add_completion=False,
)

ConfigOption = Annotated[Path | None, typer.Option(help="A TOML file of settings.")]
ModelOption = Annotated[Path | None, typer.Option(help="The model's diffusers folder.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Queue, files, certificates, caches.")]
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
    settings = _load(
        model=model, data_dir=data_dir, host=host, port=port, tls_port=tls_port, config=config
    )
    configure_logging(settings.log_level)
    try:
        application = create_app(settings)
        make_tls = partial(_certificates, settings) if settings.tls_port is not None else None
        _print_start(make_tls() if make_tls else None)
        asyncio.run(serve_app(application, settings, make_tls))
    except (ConfigurationError, StoreLockedError, StoreCorruptError) as error:
        _fail(str(error))
    except StoreUnavailableError as error:
        _fail(error.body["detail"])


@app.command("demo-model")
def demo_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
) -> None:
    """Write a tiny FLUX.2 with random weights, to try everything without a GPU."""
    command = [sys.executable, "-P", "-m", "pipelines.tools.demo_model", str(folder)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603


@app.command()
def certs(
    data_dir: DataDirOption = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A further host name or address; may be repeated.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make the certificate authority and the server's certificate, or renew what is due."""
    settings = _load(data_dir=data_dir, config=config)
    try:
        files = _certificates(settings, *(name or ()))
    except ConfigurationError as error:
        _fail(str(error))
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
    settings = _load(data_dir=data_dir, port=port, tls_port=tls_port, config=config)
    box = Box(
        host=host or _default_client_host(settings, mode),
        port=settings.port,
        tls_port=settings.tls_port,
        connect_port=settings.connect_port,
        ca_path=(tls_folder(settings) / "ca.pem").resolve(),
        key=settings.api_key.get_secret_value() if settings.api_key else None,
        public_host=urlsplit(settings.public_url or "").hostname,
    )
    try:
        typer.echo(client_env(box, mode))
    except ConfigurationError as error:
        _fail(str(error))


def main() -> None:
    """Run the command line."""
    app()


def _load(**flags: Any) -> Settings:
    try:
        return load_settings(flags)
    except ConfigurationError as error:
        _fail(str(error))


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


def _print_start(tls: TlsFiles | None) -> None:
    """Say at start what an operator must know before the first request."""
    typer.echo("safety: off; images are served unchecked, has_nsfw_concepts is always false")
    typer.echo("flash: runs the 8 Turbo sigmas without a LoRA")
    if tls:
        typer.echo(f"CA for clients: {tls.ca_path.resolve()}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"flux2-serve: {message}", err=True)
    raise typer.Exit(2)
