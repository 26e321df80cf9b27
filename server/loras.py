"""From where a caller says that a LoRA is, to a file that a runner can open.

A LoRA is named by a URL, a file of this server among them, or by a name in the operator's folder.
Nothing is ever fetched for a name, although it be one of a Hugging Face repository.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import LoraError
from pipelines.lora_header import read_header
from pipelines.lora_names import split_key
from pipelines.types import LoraUse
from server.errors import InputError, Refusal, RequestError, content_error
from server.family.endpoint import LORAS_FIELD, AskedLora
from server.files import FileStore
from server.image_urls import MAX_URL_CHARACTERS, host_of, own_file_name
from server.jobs import Job
from server.lifecycle import may_read
from server.lora_cache import Fetches, LoraCache, link_or_copy
from server.lora_folder import SUFFIX, find_local
from server.names import OwnNames
from server.settings import Settings
from server.store import Store
from server.threads import in_thread

CACHE_FOLDER = Path("cache") / "loras"
"""Of the data folder."""

ERROR_TYPE = "lora_load_error"
"""Ours, after fal's `image_load_error`: fal publishes no word for it."""

MOST_REASON_CHARACTERS = 300
"""Of what is wrong with a file: its own keys may be as long as they like."""


class _RefusedError(Exception):
    """A LoRA cannot be had: a `Refusal`."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.ctx: Mapping[str, Any] | None = None


class LoraFinder:
    """Finds the LoRAs of requests, and judges by their headers whether they are any."""

    def __init__(
        self, settings: Settings, files: FileStore, store: Store, fetcher: Fetches
    ) -> None:
        self._folder = settings.lora_dir
        self._limit_bytes = settings.lora_limit_bytes
        self._files = files
        self._store = store
        self._own_names = OwnNames.of(settings)
        self._cache = LoraCache(
            settings.data_dir / CACHE_FOLDER,
            fetcher,
            settings.lora_disk_bytes,
            settings.disk_reserve_bytes,
        )

    def sweep(self) -> None:
        """Remove what a dead server left half done."""
        self._cache.sweep()

    async def find(
        self, job: Job, asked: tuple[AskedLora, ...], spool: Path, *, is_gallery: bool
    ) -> tuple[LoraUse, ...]:
        """Return the LoRAs in their order; those of strangers get a name in `spool`.

        Raises `InputError` for the first that cannot be used, `RequestError` where the operator's
        own, which the caller did not name, cannot. Raises OSError when the disk takes no more.
        """
        uses = []
        for index, lora in enumerate(asked):
            try:
                path = await self._find(job, lora.path, spool / f"{index}{SUFFIX}")
            except Exception as error:
                if not isinstance(error, Refusal):
                    raise
                if is_gallery:
                    raise unusable_lora(lora.path) from error
                why = str(error), error.error_type, error.ctx
                raise refused_lora(index, lora.path, *why) from error
            uses.append(LoraUse(path, lora.scale))
        return tuple(uses)

    async def _find(self, job: Job, asked: str, target: Path) -> Path:
        """Return where the LoRA lies: under `target` unless it is the operator's."""
        if host_of(asked) is None:
            path = await in_thread(lambda: find_local(self._folder, asked))
            if path is None:
                raise _RefusedError("file_download_error", _describe_missing(asked, self._folder))
            await in_thread(lambda: self._check(path))
            return path
        if len(asked) > MAX_URL_CHARACTERS:
            raise _RefusedError("file_download_error", "Failed to download the file")
        await in_thread(lambda: target.parent.mkdir(parents=True, exist_ok=True))
        if name := own_file_name(asked, job.origin, self._own_names):
            await self._link_own(name, job, target)
        else:
            await self._cache.get(asked, target, self._check)
        return target

    async def _link_own(self, name: str, job: Job, target: Path) -> None:
        record, path = await self._store.get_file(name), self._files.find(name)
        if record is None or path is None or not may_read(record.acl, record.owner, job.owner):
            raise _RefusedError("file_download_error", "File not found on this server")
        await in_thread(lambda: self._check(path))
        try:
            await in_thread(lambda: link_or_copy(path, target))
        except FileNotFoundError:
            raise _RefusedError("file_download_error", "File not found on this server") from None

    def _check(self, path: Path) -> None:
        """Refuse what is no LoRA, by its size and header; which layers it is for is not asked."""
        try:
            with path.open("rb") as file:
                for key in read_header(file).tensors:
                    split_key(key)
                if file.seek(0, 2) > self._limit_bytes:
                    raise LoraError(f"larger than {self._limit_bytes} bytes")
        except LoraError as error:
            raise _RefusedError(ERROR_TYPE, str(error)) from error
        except OSError as error:
            raise _RefusedError(ERROR_TYPE, f"it cannot be read: {error.strerror}") from error


def refused_lora(
    index: int,
    path: str,
    reason: str,
    error_type: str = ERROR_TYPE,
    ctx: Mapping[str, Any] | None = None,
) -> InputError:
    """Make the answer for a LoRA of a caller that cannot be used."""
    message = reason
    if error_type == ERROR_TYPE:
        message = f"The LoRA cannot be used: {reason[:MOST_REASON_CHARACTERS]}"
    return content_error(error_type, message, loc=(LORAS_FIELD, index, "path"), value=path, ctx=ctx)


def unusable_lora(name: str) -> RequestError:
    """Make the answer where the operator's own LoRA, which no caller named, cannot be used."""
    return RequestError(503, f"This server's LoRA {name} cannot be used", "runner_server_error")


def _describe_missing(name: str, folder: Path | None) -> str:
    if folder is None:
        where = "this server has no LoRAs of its own (FLUX2_LORA_DIR)"
    else:
        where = "FLUX2_LORA_DIR of this server has no such file, or several in a folder of its name"
    return f"LoRA not found: {name[:100]!r} is no URL, and {where}. Nothing is fetched for a name."
