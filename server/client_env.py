"""The recipe that points unmodified fal clients at this box: text only, nothing is read.

Python's client takes hosts from the environment, always over https. JavaScript's has no such
switch but sends everything through a proxy URL, which may be plain http.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from server.errors import ConfigurationError

DUMMY_KEY = "local:local"
"""fal's Python client sends nothing without a key, whether or not the server asks for one."""

ZSH_COMMENTS = '[ -z "${ZSH_VERSION-}" ] || setopt interactivecomments'
"""An interactive zsh, the shell of macOS, would run pasted comments as commands without this."""

EXAMPLE_ENDPOINT = "fal-ai/flux-2"
EXAMPLE_INPUT = {"prompt": "a red fox in the snow"}


def client_env(host: str, port: int, tls_port: int | None, ca_path: Path, key: str | None) -> str:
    """Make shell lines that can be pasted, sourced or passed to `eval`, ending without a newline.

    Only the exports do something; the rest is comments. `host` is a name or an address (IPv6
    without brackets will do), `ca_path` should be absolute, and `key` None means that the server
    asks for none. Raises `ConfigurationError` for a value with control characters: a line break
    would end the comment that it stands in.
    """
    for value in (host, str(ca_path), key or ""):
        if not value.isprintable():
            raise ConfigurationError(f"{value!r} cannot be written into one line of shell")
    known_as = f"[{host}]" if ":" in host and not host.startswith("[") else host
    secret = key or DUMMY_KEY
    lines = [
        ZSH_COMMENTS,
        *_python(known_as, tls_port, ca_path),
        _export("FAL_KEY", secret),
        *_comments(["", *_javascript(f"http://{known_as}:{port}", secret)]),
        *_comments(["", *_curl(f"http://{known_as}:{port}", key)]),
    ]
    return "\n".join(lines)


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
    yield f"# Where HTTPS_PROXY is set, add {host} to NO_PROXY."
    yield "# SSL_CERT_FILE replaces the public CAs. A program that also talks to the internet needs"
    yield "# both in one file:"
    yield f'#   cat "$(python -m certifi)" {shlex.quote(str(ca_path))} | tee both.pem'
    yield '#   export SSL_CERT_FILE="$PWD/both.pem"'


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


def _curl(origin: str, key: str | None) -> list[str]:
    """Make one command that waits for the images; the queue is under `/queue`."""
    command = ["curl", f"{origin}/{EXAMPLE_ENDPOINT}", "-d", json.dumps(EXAMPLE_INPUT)]
    command += ["-H", "Content-Type: application/json"]
    if key:
        command += ["-H", f"Authorization: Key {key}"]
    return ["curl:", "  " + shlex.join(command)]


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _comments(lines: list[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]
