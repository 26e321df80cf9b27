"""The prepare step: from what the caller sent to what a runner can open.

Runs after acceptance and before the GPU. Reference images become plain RGB files in a spool
folder of the request, so that the runner never meets a stranger's bytes.
"""

import asyncio
import base64
import binascii
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines.types import LoraUse
from server.catalogue import find_endpoint
from server.errors import ECHO_LIMIT_CHARACTERS, InputError, Refusal, content_error
from server.expansion import RemoteExpander
from server.family.endpoint import Order
from server.files import FileStore
from server.image_urls import (
    IMAGE_FIELD,
    MAX_URL_CHARACTERS,
    is_data_uri,
    own_file_name,
)
from server.jobs import Job
from server.lifecycle import may_read
from server.loras import LoraFinder
from server.names import OwnNames
from server.safety import SafetyRules
from server.settings import Settings
from server.store import Store
from server.threads import in_thread

T = TypeVar("T")

OPEN_INPUTS = 2
"""How many inputs are in memory at a time, whole and parsed: each may have tens of megabytes."""

SMALL_CHARACTERS = 64 * 1024
"""An input up to this long is parsed where it is read: a thread would take longer."""

SMALL_PROMPT_CHARACTERS = 4 * 1024
"""The same where there is a deny list, which takes longer than parsing."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """A prompt that was written elsewhere, and the seed that it was written for."""

    prompt: str
    seed: int


class Fetches(Protocol):
    """Gets a file from elsewhere; what it raises for a refusal looks like `Refusal`."""

    async def fetch(self, url: str, target: Path) -> None:
        """Write what the URL leads to into the file `target`."""


class Decodes(Protocol):
    """Makes a picture that others can trust; what it raises for a refusal looks like `Refusal`."""

    async def decode(self, source: Path, target: Path) -> None:
        """Write the picture in the file `source` to `target`: upright RGB, as PNG."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One reference image that was asked for. `refusal` says why it cannot be had, if known."""

    url: str  # of a data URI only the beginning, which is all that an error repeats
    refusal: InputError | None = None


class InputPreparer:
    """Reads inputs, and turns their image URLs into checked local files."""

    def __init__(
        self,
        settings: Settings,
        files: FileStore,
        store: Store,
        fetcher: Fetches,
        decoder: Decodes,
        loras: LoraFinder,
        rules: SafetyRules,
        expander: RemoteExpander | None = None,
    ) -> None:
        self._limit_bytes = settings.reference_limit_bytes
        self._spool = settings.data_dir / "spool"
        self._files = files
        self._store = store
        self._fetcher = fetcher
        self._decoder = decoder
        self._loras = loras
        self._rules = rules
        self._expander = expander
        self._own_names = OwnNames.of(settings)
        self._opening = asyncio.Semaphore(OPEN_INPUTS)

    def sweep(self) -> None:
        """Remove what a dead server left behind."""
        shutil.rmtree(self._spool, ignore_errors=True)
        self._loras.sweep()

    async def read(self, job: Job) -> Order:
        """Return the job's validated input, its data URIs cut to what an error would repeat.

        Whether its images are checked is decided. Raises `InputError` with one entry for every
        mistake, or for a prompt that is refused, and `RequestError` when a check is due that
        nobody can make.
        """
        order = await self._open(job, lambda order: replace(order, image_urls=_cut_all(order)))
        return self._rules.decide(order, job.owner)

    async def prepare(self, job: Job) -> tuple[Path, ...]:
        """Write each of the job's reference images to the spool and return the paths, in order.

        Raises `InputError` for a mistake in the input, and one whose `loc` names the index of the
        image for the first that is refused: what can be judged without the network is judged
        first. Raises OSError when the disk takes no more. Whatever it raises, nothing is left.
        """
        try:
            sources = await self._open(job, lambda order: self._unpack(job, order))
            for source in sources:
                if source.refusal:
                    raise source.refusal
            return await _all_in_order(
                [self._make(job, index, source.url) for index, source in enumerate(sources)]
            )
        except BaseException:
            await self.release(job.request_id)
            raise

    async def find_loras(self, job: Job) -> tuple[LoraUse, ...]:
        """Return the job's LoRAs as files for the runner, judged by their headers.

        Raises and leaves as `prepare` does, for the first LoRA that cannot be used.
        """
        endpoint = find_endpoint(job.endpoint_id)
        if not (endpoint.lora or endpoint.takes_loras):
            return ()
        try:
            asked = await self._open(job, lambda order: order.loras)
            spool = self._spool / job.request_id
            return await self._loras.find(job, asked, spool, is_gallery=endpoint.lora is not None)
        except BaseException:
            await self.release(job.request_id)
            raise

    async def expand(self, job: Job, references: Sequence[Path]) -> Expanded | None:
        """Have the job's prompt written by the operator's server, if it asks for that.

        Whatever fails there, the caller's own prompt is returned. Raises `InputError` where what
        was written is refused.
        """
        if self._expander is None:
            return None
        order = await self._open(job, lambda order: replace(order, image_urls=()))
        if not order.settings.expand_prompt:
            return None
        expansion = await self._expander.expand(
            order.prompt, references, seed=order.seed, request_id=job.request_id
        )
        self.judge_prompt(expansion.prompt)
        return Expanded(expansion.prompt, order.seed)

    def may_preview(self, order: Order) -> bool:
        """Say whether an image of this order may be seen before it is done.

        Not where a model in the runner writes the prompt and a deny list is to judge it: that
        prompt is known only with the result.
        """
        return not (order.settings.expand_prompt and self._rules.reads_prompts)

    def judge_prompt(self, prompt: str) -> None:
        """Raise `InputError` for a prompt, written by a model, that no caller may send either."""
        self._rules.refuse_prompt(prompt)

    async def release(self, request_id: str) -> None:
        """Delete the request's spooled files."""
        await in_thread(lambda: shutil.rmtree(self._spool / request_id, ignore_errors=True))

    async def _open(self, job: Job, use: Callable[[Order], T]) -> T:
        """Return what `use` makes of the parsed input; the input itself is given up at once."""

        def work() -> T:
            order = find_endpoint(job.endpoint_id).parse(json.loads(text))
            self._rules.refuse_prompt(order.prompt)
            return use(order)

        small = SMALL_PROMPT_CHARACTERS if self._rules.reads_prompts else SMALL_CHARACTERS
        async with self._opening:
            text = await self._store.read_input(job.request_id)
            return work() if len(text) <= small else await in_thread(work)

    def _unpack(self, job: Job, order: Order) -> list[_Source]:
        """Move the images out of data URIs into files, so that no memory holds them any longer."""
        folder = self._spool / job.request_id
        folder.mkdir(parents=True, exist_ok=True)
        sources = []
        for index, url in enumerate(order.image_urls):
            refusal = None
            try:
                if is_data_uri(url):
                    _source_path(folder, index).write_bytes(self._read_data_uri(url, index))
                elif len(url) > MAX_URL_CHARACTERS:
                    raise _refuse("file_download_error", "Failed to download the file", index, url)
            except InputError as error:
                refusal = error
            sources.append(_Source(_cut(url), refusal))
        return sources

    async def _make(self, job: Job, index: int, url: str) -> Path:
        """Get one image and decode it; return where it lies."""
        folder = self._spool / job.request_id
        passing, target = _source_path(folder, index), folder / f"{index}.png"
        try:
            if is_data_uri(url):
                source = passing
            elif name := own_file_name(url, job.origin, self._own_names):
                source = await self._find_own(name, job, index, url)
            else:
                await self._fetcher.fetch(url, passing)
                source = passing
            await self._decoder.decode(source, target)
        except Exception as error:
            if not isinstance(error, Refusal):
                raise
            raise _refuse(error.error_type, str(error), index, url, error.ctx) from error
        finally:
            passing.unlink(missing_ok=True)
        return target

    async def _find_own(self, name: str, job: Job, index: int, url: str) -> Path:
        record, path = await self._store.get_file(name), self._files.find(name)
        if record is None or path is None or not may_read(record.acl, record.owner, job.owner):
            raise _refuse("file_download_error", "File not found on this server", index, url)
        return path

    def _read_data_uri(self, url: str, index: int) -> bytes:
        header, _, payload = url.partition(",")
        payload = payload.strip()
        # Four characters are three bytes, so that what is far too long is not decoded.
        if len(payload) <= (self._limit_bytes + 2) // 3 * 4:
            try:
                if not header.lower().endswith(";base64"):
                    raise ValueError("only base64 data URIs are read")
                data = base64.b64decode(payload, validate=True)
            except (ValueError, binascii.Error) as error:
                raise _refuse("image_load_error", "Image load error", index, url) from error
            if len(data) <= self._limit_bytes:
                return data
        ctx = {"max_size": self._limit_bytes}
        raise _refuse("file_too_large", "File too large", index, url, ctx)


def _refuse(
    error_type: str, message: str, index: int, url: str, ctx: Mapping[str, Any] | None = None
) -> InputError:
    return content_error(error_type, message, loc=(IMAGE_FIELD, index), value=url, ctx=ctx)


def _source_path(folder: Path, index: int) -> Path:
    return folder / f"{index}.source"


def _cut(url: str) -> str:
    """Keep what an error shows of a URL that is not needed any longer, and what is needed whole."""
    long = is_data_uri(url) or len(url) > MAX_URL_CHARACTERS
    return url[: ECHO_LIMIT_CHARACTERS + 1] if long else url


def _cut_all(order: Order) -> tuple[str, ...]:
    return tuple(map(_cut, order.image_urls))


async def _all_in_order(works: list[Any]) -> tuple[Path, ...]:
    """Do everything at once. Raises what the first one raises that fails, first in the list."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return tuple([await task for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
