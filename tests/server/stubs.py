"""What stands in for network, decoding process and time, where these are not the subject."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, UnidentifiedImageError

from server.files import FileStore
from server.inputs import InputPreparer
from server.keys import Caller
from server.loras import LoraFinder
from server.safety import SafetyRules
from server.settings import Settings
from server.store import Store

WAIT_SECONDS = 30


class RefusedError(Exception):
    """A refusal of the shape that the seam asks for."""

    def __init__(self, error_type: str, message: str, ctx: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.ctx = ctx


class Web:
    """A web of a few files. What is in `slow` comes when its event is set; the rest is refused."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.under_way: set[str] = set()
        self._changed = asyncio.Event()

    async def until(self, seen: Callable[[], object]) -> None:
        """Wait until a fetch that begins or ends makes `seen` true."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not seen():
                self._changed.clear()
                await self._changed.wait()

    async def fetch(self, url: str, target: Path) -> None:
        """Write the file of this URL, when its time has come."""
        self.asked.append(url)
        self.under_way.add(url)
        self._changed.set()
        try:
            target.write_bytes(b"the beginning")
            if url in self.slow:
                await self.slow[url].wait()
            if url in self.errors:
                raise self.errors[url]
            if url not in self.files:
                raise RefusedError("file_download_error", "Failed to download the file")
            target.write_bytes(self.files[url])
        finally:
            self.under_way.discard(url)
            self._changed.set()


class Decoder:
    """Decodes where it is called what needs no care, and notes what."""

    def __init__(self) -> None:
        self.sources: list[Path] = []

    async def decode(self, source: Path, target: Path) -> None:
        """Write the picture in `source` to `target`."""
        self.sources.append(source)
        try:
            with Image.open(source) as picture:
                picture.convert("RGB").save(target, "PNG", compress_level=0)
        except UnidentifiedImageError:
            raise RefusedError("unsupported_image_format", "Unsupported image format") from None


def make_preparer(
    settings: Settings,
    files: FileStore,
    store: Store,
    web: Web | None = None,
    decoder: Decoder | None = None,
) -> InputPreparer:
    """Make the prepare step over an empty web and the plain decoder, unless others are given."""
    rules = SafetyRules.of(settings, lambda owner: Caller(owner=owner))
    web = web or Web()
    loras = LoraFinder(settings, files, store, web)
    return InputPreparer(settings, files, store, web, decoder or Decoder(), loras, rules)


async def wait_an_hour() -> None:
    """Put the loop's clock forward, and let it do what is due then."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    later = loop.time() + 3600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: later)
        for _ in range(5):
            await asyncio.sleep(0)
