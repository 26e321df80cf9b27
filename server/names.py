"""The names this server goes by: one list, for its certificate and for the Host header."""

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from server.errors import ConfigurationError
from server.hosts import FAL_HOSTS
from server.machine import machine_names, normalise_name
from server.settings import Settings

EXTRA_NAMES = "extra-names.txt"
"""In the folder of the certificates: names that an operator asked for once, one on a line."""

WILDCARD_HOSTS = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)

RENEW_SECONDS = 5.0
"""Least time between two looks at the machine's names: strangers can cause them."""


def tls_folder(settings: Settings) -> Path:
    """Return where the certificates lie."""
    return settings.data_dir / "tls"


def configured_names(settings: Settings) -> list[str]:
    """List the names in the settings: those for TLS, the address listened on, the public URL's.

    Raises `ConfigurationError` for one that is neither a host name nor an address.
    """
    names = [*settings.tls_names]
    if settings.host not in WILDCARD_HOSTS:
        names.append(settings.host)
    public_host = urlsplit(settings.public_url or "").hostname
    if public_host:
        names.append(public_host)
    return [normalise_name(name) for name in names]


def remembered_names(folder: Path) -> list[str]:
    """List the extra names of earlier calls; `folder` holds the certificates."""
    path = folder / EXTRA_NAMES
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [normalise_name(name) for name in text.split()]  # a hand may have edited it


def server_names(folder: Path, configured: Iterable[str] = ()) -> list[str]:
    """List every name, each once: the machine's, fal's, the remembered and the configured ones.

    `*.domain` stands for each name one label longer than the domain, as in certificates.
    """
    return list(
        dict.fromkeys([*machine_names(), *FAL_HOSTS, *remembered_names(folder), *configured])
    )


class OwnNames:
    """Tells the server's own names from others, also after the machine got a new address."""

    def __init__(
        self, list_names: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._list_names = list_names
        self._clock = clock
        self._names = frozenset(list_names())
        self._looked_at = clock()

    @classmethod
    def of(cls, settings: Settings) -> "OwnNames":
        """Know the names of the server with these settings."""
        configured = configured_names(settings)
        return cls(lambda: server_names(tls_folder(settings), configured))

    def __contains__(self, host: object) -> bool:
        """Say whether a name or an address (IPv6 with or without brackets) is ours."""
        try:
            name = normalise_name(str(host))
        except ConfigurationError:
            return False
        if self._has(name):
            return True
        if self._clock() - self._looked_at < RENEW_SECONDS:
            return False
        self._looked_at = self._clock()
        with contextlib.suppress(ConfigurationError, OSError):  # a hand at work in the folder
            self._names = frozenset(self._list_names())
        return self._has(name)

    def _has(self, name: str) -> bool:
        parent = name.partition(".")[2]
        return name in self._names or f"*.{parent}" in self._names
