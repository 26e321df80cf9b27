"""LoRAs that were fetched by URL, kept by the hash of their content.

What is here is whole: a file gets its name when all of it is on the disk. Whoever takes one gets a
name of its own for it (a hard link), so that nothing is taken from under a request when the cache
makes room, or when it is erased by hand.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from server.lora_folder import SUFFIX
from server.threads import in_thread

URL_SECONDS = 3600.0
"""How long a URL is taken to lead to what it led to before; then it is fetched again."""


class Fetches(Protocol):
    """Gets a file from elsewhere; see `server.fetch`."""

    async def fetch(self, url: str, target: Path) -> None:
        """Write what the URL leads to into the file `target`."""


class LoraCache:
    """Keeps the files used last, in `limit_bytes`; `reserve_bytes` of the disk stay free."""

    def __init__(
        self, folder: Path, fetcher: Fetches, limit_bytes: int, reserve_bytes: int = 0
    ) -> None:
        self._folder = folder
        self._urls = folder / "urls"
        self._fetcher = fetcher
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._fetching: weakref.WeakValueDictionary[str, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._tidying = asyncio.Lock()

    def sweep(self) -> None:
        """Remove what a dead server left half done."""
        for path in (*self._folder.glob("*.part"), *self._urls.glob("*.part")):
            path.unlink(missing_ok=True)

    async def get(self, url: str, target: Path, check: Callable[[Path], None]) -> None:
        """Make `target` the file that the URL leads to, fetched unless it is here.

        Several who want the same URL wait for one fetch. `check` raises for what is not to be kept.
        Raises what it and the fetcher raise, and OSError when the disk takes no more.
        """
        lock = self._fetching.setdefault(url, asyncio.Lock())
        async with lock:
            if await self._take(url, target):
                return
            part = self._folder / f"{secrets.token_hex(16)}.part"
            await in_thread(lambda: self._urls.mkdir(parents=True, exist_ok=True))
            try:
                await self._fetcher.fetch(url, part)
                digest = await in_thread(lambda: _seal(part, check))
                async with self._tidying:
                    await in_thread(lambda: self._keep(url, part, digest, target))
            finally:
                part.unlink(missing_ok=True)

    async def _take(self, url: str, target: Path) -> bool:
        async with self._tidying:
            return await in_thread(lambda: self._link_known(url, target))

    def _link_known(self, url: str, target: Path) -> bool:
        note = self._note_of(url)
        with contextlib.suppress(OSError):
            if time.time() - note.stat().st_mtime < URL_SECONDS:
                path = self._path_of(note.read_text(encoding="ascii"))
                link_or_copy(path, target)
                _touch(path)
                return True
        return False

    def _keep(self, url: str, part: Path, digest: str, target: Path) -> None:
        path = self._path_of(digest)
        part.replace(path)
        _touch(path)
        link_or_copy(path, target)
        note = self._note_of(url)
        spare = note.with_suffix(".part")
        spare.write_text(digest, encoding="ascii")
        spare.replace(note)
        self._make_room()

    def _make_room(self) -> None:
        """Remove the files used longest ago, and what is noted of URLs for too long."""
        files = [(path, path.stat()) for path in self._folder.glob(f"*{SUFFIX}")]
        total = sum(seen.st_size for _, seen in files)
        for path, seen in sorted(files, key=lambda file: file[1].st_atime_ns):
            is_tight = shutil.disk_usage(self._folder).free < self._reserve_bytes
            if total <= self._limit_bytes and not is_tight:
                break
            path.unlink()
            total -= seen.st_size
        oldest = time.time() - URL_SECONDS
        for note in self._urls.iterdir():
            if note.stat().st_mtime < oldest:
                note.unlink()

    def _note_of(self, url: str) -> Path:
        return self._urls / hashlib.sha256(url.encode("utf-8")).hexdigest()

    def _path_of(self, digest: str) -> Path:
        return self._folder / f"{digest}{SUFFIX}"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _seal(part: Path, check: Callable[[Path], None]) -> str:
    """Check what was fetched, see it onto the disk, and return the hash of its content."""
    check(part)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _touch(path: Path) -> None:
    """Note that a file was used, without changing by what the runner knows it."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
