"""From the settings to what is put into each picture, and whether it can be."""

from pathlib import Path

from server.errors import ConfigurationError
from server.provenance.credentials import Credentials, check
from server.provenance.markers import Marking
from server.settings import Settings


def marking_of(settings: Settings, folder: Path) -> Marking:
    """Return what the operator wants in each file, made by the model in this folder.

    Raises `ConfigurationError` for a certificate without its key, or a key alone.
    """
    certificate, key = settings.c2pa_cert, settings.c2pa_key
    if (certificate is None) != (key is None):
        raise ConfigurationError("FLUX2_C2PA_CERT and FLUX2_C2PA_KEY go together: one is not set")
    credentials = None
    if certificate and key:
        credentials = Credentials(
            certificate=certificate, key=key, timestamp_url=settings.c2pa_timestamp_url
        )
    return Marking(
        model=folder.name,
        marker=settings.marker == "on",
        watermark=settings.watermark == "on",
        credentials=credentials,
    )


def check_marking(settings: Settings) -> None:
    """Try the credentials out before the first request. Raises `ConfigurationError`."""
    credentials = marking_of(settings, next(iter(settings.folders.values()))).credentials
    if credentials:
        check(credentials)
