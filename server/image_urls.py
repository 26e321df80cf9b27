"""What a reference image or a LoRA may be given as, and what it takes to get it."""

from collections.abc import Container, Mapping
from typing import Any
from urllib.parse import urlsplit

from server.family.endpoint import LORAS_FIELD, Endpoint
from server.files import NAME_PATTERN, URL_PREFIX
from server.jobs import Need

IMAGE_FIELD = "image_urls"
EXPANSION_FIELD = "enable_prompt_expansion"
MAX_URL_CHARACTERS = 8192
"""A longer one is no address of anything; data URIs have a limit of their own."""


def is_data_uri(url: str) -> bool:
    """Say whether the image itself is in the URL."""
    return url[:5].lower() == "data:"


def own_file_name(url: str, origin: str, names: Container[str]) -> str | None:
    """Return the name of the file of this server that a URL leads to, or None.

    Ours are the hosts in `names` and that of `origin`, by which the caller reached us, on any
    port: a box serves the same files on several. A stranger's host is a stranger's, whatever the
    path looks like.
    """
    if len(url) > MAX_URL_CHARACTERS:
        return None
    host = host_of(url)
    if host is None or not (host in names or host == host_of(origin)):
        return None
    path = urlsplit(url).path
    name = path.removeprefix(URL_PREFIX)
    return name if path.startswith(URL_PREFIX) and NAME_PATTERN.fullmatch(name) else None


def need_of(
    endpoint: Endpoint,
    body: Any,
    origin: str,
    names: Container[str],
    *,
    expands_elsewhere: bool = False,
) -> Need:
    """Say what a request with this body, which nobody has validated yet, will have to wait for.

    With `expands_elsewhere` prompts are expanded by another server: that is waiting for others too.
    """
    fields = body if isinstance(body, dict) else {}
    urls, loras = fields.get(IMAGE_FIELD), _lora_paths(endpoint, fields)
    if any(host_of(path) and not own_file_name(path, origin, names) for path in loras):
        return Need.FETCHING_LORAS
    if expands_elsewhere and _asks_expansion(endpoint, body):
        return Need.FETCHING
    for url in urls[: endpoint.reference_limit] if isinstance(urls, list) else ():
        if isinstance(url, str) and not is_data_uri(url) and not own_file_name(url, origin, names):
            return Need.FETCHING
    return Need.DECODING if endpoint.reference_limit or loras else Need.NOTHING


def _lora_paths(endpoint: Endpoint, fields: Mapping[str, Any]) -> list[str]:
    """Return where the LoRAs of an input that nobody has validated yet are, as far as it says."""
    if endpoint.lora:
        return [endpoint.lora]
    loras = fields.get(LORAS_FIELD)
    if not endpoint.takes_loras or not isinstance(loras, list):
        return []
    paths = [lora.get("path") for lora in loras if isinstance(lora, dict)]
    return [path for path in paths if isinstance(path, str)]


def host_of(url: str) -> str | None:
    """Return the host name of an http URL, in lower case, or None when it has none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    return host.removesuffix(".") if host and parts.scheme in ("http", "https") else None


def _asks_expansion(endpoint: Endpoint, body: Any) -> bool:
    fields = endpoint.input.model_fields
    default = fields[EXPANSION_FIELD].default if EXPANSION_FIELD in fields else False
    return bool(body.get(EXPANSION_FIELD, default)) if isinstance(body, dict) else False
