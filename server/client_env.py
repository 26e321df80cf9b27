"""The recipes that point unmodified fal clients at this box: text only, nothing is read.

By settings: Python's client takes hosts from the environment, always over https; JavaScript's has
no such switch but sends everything through a proxy URL, which may be plain http. Uploads of
Python's have their hosts built in: for them there are the other two, a proxy and a hosts file.
"""

import ipaddress
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from server.errors import ConfigurationError
from server.hosts import FAL_HOSTS

DUMMY_KEY = "local:local"
"""fal's Python client sends nothing without a key, whether or not the server asks for one."""

ZSH_COMMENTS = '[ -z "${ZSH_VERSION-}" ] || setopt interactivecomments'
"""An interactive zsh, the shell of macOS, would run pasted comments as commands without this."""

EXAMPLE_ENDPOINT = "fal-ai/flux-2"
EXAMPLE_INPUT = {"prompt": "a red fox in the snow"}


HOSTS_PORT = 443
"""What https means without a port, and all that a hosts file can lead to."""

PROXY_PORT = 8081
"""What the recipe proposes for the proxy when it is off."""


class Mode(StrEnum):
    """How clients are led here: by their own settings, by a proxy, or by what names resolve to."""

    ENV = "env"
    PROXY = "proxy"
    HOSTS = "hosts"


@dataclass(frozen=True, slots=True)
class Box:
    """A server as clients see it.

    `host` is a name or an address (IPv6 without brackets will do), `ca_path` should be absolute.
    `key` None means that the server asks for none. `public_host` is where the URLs in answers
    point to when that is not where the caller came from.
    """

    host: str
    port: int
    tls_port: int | None
    ca_path: Path
    key: str | None
    connect_port: int | None = None
    public_host: str | None = None

    @property
    def url_host(self) -> str:
        """The host as URLs have it."""
        return f"[{self.host}]" if ":" in self.host and "[" not in self.host else self.host

    @property
    def secret(self) -> str:
        """What clients should send as their key."""
        return self.key or DUMMY_KEY


def client_env(box: Box, mode: Mode = Mode.ENV) -> str:
    """Make shell lines that can be pasted, sourced or passed to `eval`, ending without a newline.

    Only the variables do something; the rest is comments. Raises `ConfigurationError` for a value
    with control characters, since a line break would end the comment that it stands in, and in
    mode `hosts` for a host that is no address.
    """
    for value in (box.host, str(box.ca_path), box.key or "", box.public_host or ""):
        if not value.isprintable():
            raise ConfigurationError(f"{value!r} cannot be written into one line of shell")
    recipe = {Mode.ENV: _by_settings, Mode.PROXY: _by_proxy, Mode.HOSTS: _by_hosts}[mode]
    return "\n".join([ZSH_COMMENTS, *recipe(box)])


def _by_settings(box: Box) -> Iterator[str]:
    """Yield the recipe for clients that can be told other hosts: all but uploads of Python's."""
    origin = f"http://{box.url_host}:{box.port}"
    yield from _python(box.url_host, box.tls_port, box.ca_path)
    yield _export("FAL_KEY", box.secret)
    yield from _comments(["", *_javascript(origin, box.secret)])
    yield from _comments(["", *_curl(origin, box.key)])


def _by_proxy(box: Box) -> Iterator[str]:
    """Yield the recipe for programs that are left as they are and heed `HTTPS_PROXY`."""
    if not box.connect_port or box.tls_port is None:
        yield "# Not possible now: the server's proxy is off, or has no fixed port. Start it with"
        yield f"#   FLUX2_CONNECT_PORT={PROXY_PORT}"
        yield "# and TLS on, then run this command again with the same setting."
        yield _export("FAL_KEY", box.secret)
        return
    proxy = f"http://{box.url_host}:{box.connect_port}"
    yield from _comments(
        [
            "Every client that heeds HTTPS_PROXY, as Python's does, uploads included. The proxy",
            "leads fal's hosts to this server and refuses all others: a program that also talks",
            "to others over https needs those in NO_PROXY.",
        ]
    )
    yield _UNSET
    # Where both spellings are set, most programs heed the small one.
    yield from (_export(name, proxy) for name in ("HTTPS_PROXY", "https_proxy"))
    if box.public_host:
        yield "# URLs in answers point here, past the proxy (FLUX2_PUBLIC_URL):"
        others = '"${NO_PROXY:+,$NO_PROXY}"'
        yield f"{_export('NO_PROXY', box.public_host)}{others}"
        yield 'export no_proxy="$NO_PROXY"'
    yield from _trust(box.ca_path)
    yield "# Node 24 or newer; older ones know no proxies:"
    yield _export("NODE_USE_ENV_PROXY", "1")
    yield _export("FAL_KEY", box.secret)
    options = ["--proxy", proxy, "--cacert", str(box.ca_path)]
    yield from _comments(["", *_curl("https://fal.run", box.key, options)])


def _by_hosts(box: Box) -> Iterator[str]:
    """Yield the recipe for programs of every kind: fal's names resolve to this server."""
    try:
        name = "127.0.0.1" if box.host == "localhost" else box.host.strip("[]")
        address = str(ipaddress.ip_address(name))
    except ValueError as error:
        raise ConfigurationError(
            f"a hosts file holds addresses, and {box.host!r} is none: give the box's with --host"
        ) from error
    if box.tls_port is None:
        yield "# Not possible now: fal's names are for https, and this server has TLS off."
        yield "# Give the server a --tls-port, then run this command again."
        yield _export("FAL_KEY", box.secret)
        return
    format_ = shlex.quote(f"{address} %s\\n")
    yield from _comments(
        [
            "Every client in every language, uploads included. Add a line for each of fal's names",
            r"to the hosts file of the client's machine (Windows: drivers\etc\hosts in System32).",
            "All of them: the last two are where Python's client turns, prompt in hand, when the",
            "first ones do not answer.",
            f"  printf {format_} {' '.join(_in_order(FAL_HOSTS))} | sudo tee -a /etc/hosts",
        ]
    )
    if box.tls_port != HOSTS_PORT:
        yield from _comments(_port_443(box.tls_port))
    yield _UNSET
    yield from _trust(box.ca_path)
    yield _export("FAL_KEY", box.secret)
    yield from _comments(
        [
            "Java, with the public CAs it has:",
            '  cp "$JAVA_HOME/lib/security/cacerts" trust.jks',
            "  keytool -importcert -noprompt -alias flux2-serve -keystore trust.jks \\",
            f"    -storepass changeit -file {shlex.quote(str(box.ca_path))}",
            "  java -Djavax.net.ssl.trustStore=trust.jks ...",
        ]
    )
    options = ["--cacert", str(box.ca_path)]
    yield from _comments(["", *_curl("https://fal.run", box.key, options)])


_UNSET = "unset FAL_RUN_HOST FAL_QUEUE_RUN_HOST"
"""Another recipe's variables would lead past this one."""


def _in_order(names: Iterable[str]) -> list[str]:
    """Put the back-up domains last."""
    return sorted(names, key=lambda name: name.endswith("falrun.com"))


def _port_443(tls_port: int) -> list[str]:
    """Say how a server that listens on `tls_port` is reached by the port that https has."""
    rules = f"tcp dport {HOSTS_PORT} redirect to :{tls_port}"
    return [
        f"Names carry no port, so the server must be on {HOSTS_PORT}, and is on {tls_port}. Either",
        "let it listen there: FLUX2_TLS_PORT=443, and in its systemd unit",
        "  AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "or redirect the port on the server's machine (the second rule for its own programs):",
        "  sudo nft 'table ip flux2 {",
        f"    chain incoming {{ type nat hook prerouting priority -100; {rules}; }}",
        f"    chain own {{ type nat hook output priority -100; fib daddr type local {rules}; }}",
        "  }'",
    ]


def _trust(ca_path: Path) -> Iterator[str]:
    """Yield how clients of each kind are told to trust the server's certificate."""
    yield "# Python and Go; Python's requests; curl; Node:"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        yield _export(name, str(ca_path))
    yield "# All but Node's replace the public CAs."
    yield from _both(ca_path)


def _both(ca_path: Path) -> Iterator[str]:
    yield "# A program that also talks to the internet needs both in one file:"
    yield f'#   cat "$(python -m certifi)" {shlex.quote(str(ca_path))} | tee both.pem'
    yield '#   export SSL_CERT_FILE="$PWD/both.pem"'


def _python(host: str, tls_port: int | None, ca_path: Path) -> Iterator[str]:
    """Yield the variables that `fal_client` reads, at import; it puts `https://` before hosts."""
    yield "# Python, fal_client 0.11 or newer:"
    if tls_port is None:
        yield "# not possible now: fal_client always uses https, and this server has TLS off."
        yield "# Give the server a --tls-port, then run this command again."
        return
    yield _export("FAL_RUN_HOST", f"{host}:{tls_port}")
    yield _export("FAL_QUEUE_RUN_HOST", f"{host}:{tls_port}/queue")
    yield _export("SSL_CERT_FILE", str(ca_path))
    yield f"# Where HTTPS_PROXY is set, add {host} to NO_PROXY. For realtime give use_jwt=False:"
    yield "# the host that tokens come from is built in, as those for uploads are."
    yield "# SSL_CERT_FILE replaces the public CAs."
    yield from _both(ca_path)


def _javascript(origin: str, key: str) -> list[str]:
    """Make a snippet whose strings are JSON, which is also JavaScript."""
    return [
        "JavaScript, @fal-ai/client 1.10 or newer:",
        '  import { createFalClient } from "@fal-ai/client";',
        "  const fal = createFalClient({",
        f"    credentials: {json.dumps(key)},",
        f'    proxyUrl: {{ url: {json.dumps(origin + "/api/fal/proxy")}, when: "always" }},',
        "  });",
    ]


def _curl(origin: str, key: str | None, options: Sequence[str] = ()) -> list[str]:
    """Make one command that waits for the images."""
    command = ["curl", *options, f"{origin}/{EXAMPLE_ENDPOINT}", "-d", json.dumps(EXAMPLE_INPUT)]
    command += ["-H", "Content-Type: application/json"]
    if key:
        command += ["-H", f"Authorization: Key {key}"]
    return ["curl:", "  " + shlex.join(command)]


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _comments(lines: list[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]
