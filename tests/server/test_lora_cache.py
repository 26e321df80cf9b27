"""LoRAs fetched by URL: once for each content, whole or not at all, and never too many."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest

from server.lora_cache import URL_SECONDS, LoraCache
from tests.server.stubs import RefusedError, Web

pytestmark = pytest.mark.anyio

URL, OTHER = "https://loras.example/a", "https://loras.example/b"


class Bench:
    """A cache over a web of the test's."""

    def __init__(self, folder: Path, limit_bytes: int = 1000) -> None:
        self.web = Web()
        self.folder = folder / "cache"
        self.spool = folder / "spool"
        self.spool.mkdir(exist_ok=True)
        self.cache = LoraCache(self.folder, self.web, limit_bytes)
        self.bad: set[bytes] = set()

    def check(self, path: Path) -> None:
        """Refuse what the test calls bad."""
        if path.read_bytes() in self.bad:
            raise RefusedError("lora_load_error", "bad")

    async def get(self, url: str, name: str = "target") -> bytes:
        """Get a URL; return what is in the file."""
        target = self.spool / name
        await self.cache.get(url, target, self.check)
        return target.read_bytes()

    @property
    def kept(self) -> set[str]:
        """The hashes of what is kept; nothing else may be there."""
        files = [path for path in self.folder.iterdir() if path.is_file()]
        assert all(path.suffix == ".safetensors" for path in files)
        return {path.stem for path in files}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return an empty cache for a thousand bytes."""
    return Bench(tmp_path)


def digest(data: bytes) -> str:
    """Return the hash that a file is kept by."""
    return hashlib.sha256(data).hexdigest()


async def test_a_url_is_fetched_once(bench: Bench, tmp_path: Path) -> None:
    """Also by the next server over the same folder, and equal content is kept once."""
    bench.web.files = {URL: b"one", OTHER: b"one"}
    assert await bench.get(URL) == await bench.get(URL, "again") == b"one"
    assert bench.web.asked == [URL]
    again = Bench(tmp_path)
    again.web.files = bench.web.files
    assert await again.get(URL) == b"one"
    assert await again.get(OTHER) == b"one"
    assert again.web.asked == [OTHER]
    assert bench.kept == {digest(b"one")}


async def test_many_who_want_the_same_wait_for_one_fetch(bench: Bench) -> None:
    """And those who want another do not wait for them."""
    bench.web.files = {URL: b"one", OTHER: b"two"}
    bench.web.slow[URL] = asyncio.Event()
    waiting = [asyncio.create_task(bench.get(URL, str(number))) for number in range(5)]
    await bench.web.until(lambda: URL in bench.web.under_way)
    assert await bench.get(OTHER, "other") == b"two"
    bench.web.slow[URL].set()
    assert await asyncio.gather(*waiting) == [b"one"] * 5
    assert bench.web.asked == [URL, OTHER]


async def test_after_an_hour_a_url_is_fetched_again(bench: Bench) -> None:
    """What it leads to may be another file by then."""
    bench.web.files = {URL: b"one"}
    await bench.get(URL)
    (note,) = (bench.folder / "urls").iterdir()
    then = time.time() - URL_SECONDS - 1
    os.utime(note, (then, then))
    bench.web.files = {URL: b"two"}
    assert await bench.get(URL) == b"two"


async def test_the_oldest_go_first_and_nobody_loses_what_they_have(bench: Bench) -> None:
    """A file in use stays whole under its other name, whatever the cache does."""
    contents = {f"{URL}/{number}": bytes([number]) * 400 for number in range(3)}
    bench.web.files = contents
    first, second, third = contents
    for url in (first, second, first, third):
        await bench.get(url, url[-1])
    assert bench.kept == {digest(contents[first]), digest(contents[third])}
    assert (bench.spool / second[-1]).read_bytes() == contents[second]
    assert await bench.get(second) == contents[second]
    assert bench.web.asked == [first, second, third, second]


async def test_a_file_larger_than_the_cache_is_used_and_not_kept(tmp_path: Path) -> None:
    """The request has it all the same."""
    bench = Bench(tmp_path, limit_bytes=2)
    bench.web.files = {URL: b"three"}
    assert await bench.get(URL) == b"three"
    assert bench.kept == set()


async def test_the_reserve_of_the_disk_is_not_for_the_cache(bench: Bench) -> None:
    """On a full disk nothing is kept: new requests are refused below the reserve."""
    cache = LoraCache(bench.folder, bench.web, 1000, reserve_bytes=2**62)
    bench.web.files = {URL: b"one"}
    await cache.get(URL, bench.spool / "target", bench.check)
    assert (bench.spool / "target").read_bytes() == b"one"
    assert bench.kept == set()


async def test_nothing_half_done_is_left(bench: Bench) -> None:
    """Of a fetch that is refused, of a file that is, of one that is cancelled, of a crash."""
    bench.bad = {b"bad"}
    bench.web.files = {OTHER: b"bad"}
    for url in (URL, OTHER):
        with pytest.raises(RefusedError):
            await bench.get(url)
    bench.web.slow["slow"] = asyncio.Event()
    task = asyncio.create_task(bench.get("slow"))
    await bench.web.until(lambda: "slow" in bench.web.under_way)
    task.cancel()
    await asyncio.wait({task})
    assert bench.kept == set()
    assert list(bench.spool.iterdir()) == []
    (bench.folder / "dead.part").write_bytes(b"half")
    (bench.folder / "urls" / "dead.part").write_bytes(b"half")
    bench.cache.sweep()
    assert bench.kept == set()
    assert list((bench.folder / "urls").iterdir()) == []


async def test_what_was_erased_by_hand_is_fetched_again(bench: Bench) -> None:
    """The folder is a cache: it may be emptied at any time."""
    bench.web.files = {URL: b"one"}
    await bench.get(URL)
    for path in bench.folder.glob("*.safetensors"):
        path.unlink()
    assert await bench.get(URL) == b"one"
    assert bench.web.asked == [URL, URL]
