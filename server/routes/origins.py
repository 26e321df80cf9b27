"""Which names this server answers to, and whose web pages may call it.

Both rules are about browsers. A page whose host name is made to lead here (DNS rebinding) would
have this server for its own; one of any other origin could use a server that asks for no key.
Other programs can claim whatever they like, so for them there are keys.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ConfigurationError, RequestError
from server.hosts import split_port
from server.machine import LOOPBACK_NAMES, normalise_name
from server.names import OwnNames
from server.routes.answers import error_response

ORIGINS_VARIABLE = "FLUX2_ORIGINS"
ECHO_CHARACTERS = 100


class HostMiddleware:
    """Answers 400 to a request for a host that is none of ours."""

    def __init__(self, app: ASGIApp, names: OwnNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what asks for one of our names, requests as well as websockets.

        HTTP/1.0 needs no Host, and probes of load balancers send none; browsers always do.
        """
        if scope["type"] in ("http", "websocket"):
            hosts = Headers(scope=scope).getlist("host")
            if (hosts or scope.get("http_version") != "1.0") and not self._is_ours(hosts):
                await error_response(_wrong_host(hosts))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, hosts: list[str]) -> bool:
        split = split_port(hosts[0]) if len(hosts) == 1 else None
        return split is not None and split[0] in self._names


def _wrong_host(hosts: list[str]) -> RequestError:
    fault = "one, and only one, is needed"
    if len(hosts) == 1:
        fault = f"{hosts[0][:ECHO_CHARACTERS]!r} is not a name of this server"
    return RequestError(
        400, f"Host: {fault}. Names beside the machine's own and fal's belong into FLUX2_TLS_NAMES."
    )


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """Whose pages may call a server without keys: single origins, and hosts with every port."""

    origins: frozenset[str]
    hosts: frozenset[str]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "AllowedOrigins":
        """Read the setting: origins as browsers send them, or host names.

        `localhost` stands for the loopback addresses too. Raises `ConfigurationError` for an
        entry that is neither, and for one with `*`: to be open to all pages, have a key.
        """
        origins: set[str] = set()
        hosts: set[str] = set()
        for entry in entries:
            if "*" in entry:
                raise ConfigurationError(
                    f"{ORIGINS_VARIABLE}: {entry!r} has a wildcard; name each host, or have a "
                    "key, with which every origin may call"
                )
            if "://" in entry:
                origins.add(_read_entry(entry))
            elif (name := normalise_name(entry)) == "localhost":
                hosts.update(LOOPBACK_NAMES)
            else:
                hosts.add(name)
        return cls(frozenset(origins), frozenset(hosts))

    def allows(self, origin: str) -> bool:
        """Say whether pages of this origin may call; `null`, which has no host, never may."""
        normal = _normal_origin(origin)
        if normal is None:
            return False
        return normal in self.origins or urlsplit(normal).hostname in self.hosts


def _read_entry(entry: str) -> str:
    normal = _normal_origin(entry.removesuffix("/"))
    if normal is None:
        raise ConfigurationError(
            f"{ORIGINS_VARIABLE}: {entry!r} is neither an origin, such as https://app.example, "
            "nor a host name"
        )
    return normal


def _normal_origin(origin: str) -> str | None:
    """Return `scheme://host[:port]` in lower case and without a default port, None if it is not."""
    scheme, separator, host = origin.lower().partition("://")
    split = split_port(host)
    if not (scheme and separator and split):
        return None
    name, port = split
    is_default = port in ("", {"http": ":80", "https": ":443"}.get(scheme))
    return f"{scheme}://{name}{'' if is_default else port}"


class OriginMiddleware:
    """Answers 403 to the pages that may not call; whoever sends no Origin is none."""

    def __init__(self, app: ASGIApp, allowed: AllowedOrigins, has_keys: Callable[[], bool]) -> None:
        self._app = app
        self._allowed = allowed
        self._has_keys = has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may go on; a page's key is looked at later, like any other.

        Browsers let every page open websockets to everywhere: for these nothing else protects a
        server without keys.
        """
        if scope["type"] in ("http", "websocket") and not self._has_keys():
            headers = Headers(scope=scope)
            for origin in headers.getlist("origin"):
                if not (self._allowed.allows(origin) or _is_our_own(origin, headers)):
                    await error_response(_wrong_origin(origin))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _is_our_own(origin: str, headers: Headers) -> bool:
    """Say whether the page came from here: from the host, already checked, that it now asks."""
    host = headers.get("host", "").lower()
    return origin.lower() in (f"http://{host}", f"https://{host}")


def _wrong_origin(origin: str) -> RequestError:
    return RequestError(
        403,
        f"Pages of {origin[:ECHO_CHARACTERS]!r} may not call this server: it has no keys, and "
        f"{ORIGINS_VARIABLE} does not name them.",
    )
