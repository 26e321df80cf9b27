"""The LoRAs of a receipt, found again by their content wherever this server may have them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.types import LoraUse
from server.errors import ConfigurationError
from server.family.endpoint import AskedLora
from server.files import FileStore
from server.lora_folder import SUFFIX, find_local
from server.loras import CACHE_FOLDER
from server.settings import Settings


def find_loras(
    settings: Settings,
    receipt: Mapping[str, Any],
    asked: Sequence[AskedLora],
    offered: Sequence[Path],
) -> tuple[LoraUse, ...]:
    """Return the files that the images were made with, as strongly as they were asked for.

    Each is the first of those in the operator's folder, the uploads, the cache and `offered` whose
    content is the one that was put on. Raises `ConfigurationError` for one that is nowhere.
    """
    if not asked:
        return ()
    digests = [word.partition("*")[0] for word in receipt["applied"].get("loras", "").split("+")]
    uses = []
    for lora, digest in zip(asked, digests, strict=True):
        candidates = (*_places(settings, lora.path, digest), *offered)
        path = next((path for path in candidates if _is(path, digest)), None)
        if path is None:
            raise ConfigurationError(
                f"the LoRA {lora.path} (sha256 {digest}...) is not here any more: give it as "
                "--lora FILE"
            )
        uses.append(LoraUse(path, lora.scale))
    return tuple(uses)


def _places(settings: Settings, asked: str, digest: str) -> Iterator[Path]:
    """Yield where such a LoRA may be; a file of another content may be there by now."""
    local = find_local(settings.lora_dir, asked)
    if local:
        yield local
    name = urlsplit(asked).path.rpartition("/")[2]
    uploaded = FileStore(settings.data_dir / "files").find(name)
    if uploaded:
        yield uploaded
    yield from (settings.data_dir / CACHE_FOLDER).glob(f"{digest}*{SUFFIX}")


def _is(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    return bool(digest) and found.startswith(digest)
