"""The prepare step: URLs to local files, errors to the exact list index."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.errors import InputError
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import Job, Outcome, StoredFile, complete
from server.settings import Settings
from server.store import Store
from tests.server.stubs import Decoder, RefusedError, Web, make_preparer

pytestmark = pytest.mark.anyio

ORIGIN = "https://box.example:8443"
RED, BLUE = (255, 0, 0), (0, 0, 255)
FAR = "https://images.example"


def make_png(colour: str = "red") -> bytes:
    """Make a small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 80), colour).save(buffer, "PNG")
    return buffer.getvalue()


def to_data_uri(data: bytes, kind: str = "image/png") -> str:
    """Wrap bytes as fal's clients do."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Bench:
    """The prepare step over a real store and real files; the web is the test's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.files = FileStore(settings.data_dir / "files")
        self.store = Store(settings.data_dir)
        self.web = Web()
        self.decoder = Decoder()
        self.inputs = make_preparer(settings, self.files, self.store, self.web, self.decoder)
        self.spool = settings.data_dir / "spool"

    async def submit(self, *urls: Any, owner: str = "local", **fields: Any) -> Job:
        """Store an edit request with these images."""
        job = Job(
            request_id=f"{len(self.store.backlog)}",
            endpoint_id="fal-ai/flux-2/flash/edit",
            owner=owner,
            origin=ORIGIN,
            input=json.dumps({"prompt": "x", "image_urls": urls, **fields}),
            created_at=1.0,
        )
        return await self.store.insert(job)

    async def keep(self, data: bytes, owner: str = "local", acl: str | None = None) -> str:
        """Store a file with its record; return its name."""
        name = self.files.write(data, "png")
        file = StoredFile(
            name=name, content_type="image/png", size_bytes=len(data), owner=owner, acl=acl
        )
        job = await self.store.insert(
            Job(request_id=name, endpoint_id="x/y", owner=owner, origin=ORIGIN, created_at=1.0)
        )
        outcome = Outcome(http_status=200, body="{}", keep_seconds=60, files=(file,))
        await self.store.change(job.request_id, lambda job: complete(job, outcome, 2.0))
        return name

    async def refusal(self, job: Job) -> dict[str, Any]:
        """Prepare what must be refused; return the one mistake."""
        with pytest.raises(InputError) as caught:
            await self.inputs.prepare(job)
        (item,) = caught.value.body["detail"]
        assert not (self.spool / job.request_id).exists()
        return dict(item)


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    """Return a prepare step over the settings' data folder."""
    bench = Bench(settings)
    await bench.store.open()
    yield bench
    await bench.store.close()


def colour_of(path: Path) -> Any:
    """Return the colour of a prepared picture."""
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return picture.getpixel((0, 0))


async def test_every_way_of_giving_an_image_leads_to_its_pixels(bench: Bench) -> None:
    """A data URI of any declared type, our own file and a URL: in order, and no source is left."""
    name = await bench.keep(make_png("blue"))
    bench.web.files[f"{FAR}/a.png"] = make_png("lime")
    urls = (
        to_data_uri(make_png("red"), "text/html"),
        f"http://v3.fal.media/files/{name}",
        f"{FAR}/a.png",
        f"{ORIGIN}/files/{name}",
    )
    paths = await bench.inputs.prepare(await bench.submit(*urls))
    assert [colour_of(path) for path in paths] == [RED, BLUE, (0, 255, 0), BLUE]
    assert sorted(bench.spool.rglob("*.*")) == sorted(paths)
    assert bench.files.find(name) is not None
    assert bench.web.asked == [f"{FAR}/a.png"]
    await bench.inputs.release("0")
    assert list(bench.spool.iterdir()) == []
    await bench.inputs.release("0")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{FAR}/cat.png", "file_download_error"),
        (f"{FAR}/files/{'0' * 32}.png", "file_download_error"),
        (f"https://localhost/files/{'0' * 32}.png", "file_download_error"),
        ("file:///etc/passwd", "file_download_error"),
        ("", "file_download_error"),
        ("x" * 1_000_000, "file_download_error"),
        ("data:image/png;base64,!!!!", "image_load_error"),
        ("data:image/png;base64,AAA", "image_load_error"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "image_load_error"),
        ("data:image/png,plain", "image_load_error"),
        ("data:text/html,<script>", "image_load_error"),
        ("data:", "image_load_error"),
        ("data:text/plain;base64,aGVsbG8=", "unsupported_image_format"),
        ("data:;base64,", "unsupported_image_format"),
    ],
)
async def test_refusals_name_the_index(bench: Bench, url: str, expected: str) -> None:
    """The error's loc ends with the index of the image it is about, and nothing is left."""
    item = await bench.refusal(await bench.submit(to_data_uri(make_png()), url))
    assert item["type"] == expected
    assert item["loc"] == ["body", "image_urls", 1]
    assert item["url"].endswith(f"#{expected}")
    assert len(item["input"]) < 600


async def test_a_stranger_s_host_with_our_path_is_asked(bench: Bench) -> None:
    """A file of ours is not taken for what somebody else has under the same path."""
    name = await bench.keep(make_png("blue"))
    url = f"https://stranger.example/files/{name}"
    bench.web.files[url] = make_png("red")
    (path,) = await bench.inputs.prepare(await bench.submit(url))
    assert colour_of(path) == RED


@pytest.mark.parametrize(("owner", "readable"), [("anna", True), ("bert", True), ("carl", False)])
async def test_a_file_is_for_whom_its_owner_lets_read_it(
    bench: Bench, owner: str, readable: bool
) -> None:
    """What a key may not read it cannot edit either, and it looks as if it did not exist."""
    acl = '{"default": "forbid", "rules": [{"user": "bert", "decision": "allow"}]}'
    name = await bench.keep(make_png("blue"), "anna", acl)
    job = await bench.submit(f"https://localhost/files/{name}", owner=owner)
    if readable:
        (path,) = await bench.inputs.prepare(job)
        assert colour_of(path) == BLUE
        return
    item = await bench.refusal(job)
    unknown = await bench.submit(f"https://localhost/files/{'0' * 32}.png", owner=owner)
    other = await bench.refusal(unknown)
    assert (item["type"], item["msg"]) == (other["type"], other["msg"])
    assert item["type"] == "file_download_error"


async def test_a_file_without_a_record_is_no_file(bench: Bench) -> None:
    """What expired is not read from the disk, even before it is deleted there."""
    name = bench.files.write(make_png(), "png")
    item = await bench.refusal(await bench.submit(f"https://localhost/files/{name}"))
    assert item["type"] == "file_download_error"


@pytest.mark.parametrize("spare", [0, 1, 2, -1])
async def test_the_size_limit_counts_decoded_bytes(settings: Settings, spare: int) -> None:
    """A data URI of exactly the limit passes, one byte more is too large, whatever its padding."""
    data = make_png()
    limit = len(data) + spare
    bench = Bench(settings.model_copy(update={"reference_limit_bytes": limit}))
    await bench.store.open()
    job = await bench.submit(to_data_uri(data))
    if spare >= 0:
        assert len(await bench.inputs.prepare(job)) == 1
    else:
        item = await bench.refusal(job)
        assert (item["type"], item["ctx"]) == ("file_too_large", {"max_size": limit})
    await bench.store.close()


async def test_our_own_files_have_no_such_limit(settings: Settings) -> None:
    """What was let into the storage may be used from there at any size."""
    bench = Bench(settings.model_copy(update={"reference_limit_bytes": 1}))
    await bench.store.open()
    name = await bench.keep(make_png())
    job = await bench.submit(f"https://localhost/files/{name}")
    assert len(await bench.inputs.prepare(job)) == 1
    await bench.store.close()


async def test_the_fetcher_s_words_reach_the_caller(bench: Bench) -> None:
    """Type, message and ctx of a refusal are told as they are, for the image it is about."""
    url = f"{FAR}/big.png"
    refusal = RefusedError("file_too_large", "File too large", {"max_size": 7})
    bench.web.errors[url] = refusal
    item = await bench.refusal(await bench.submit(to_data_uri(make_png()), url))
    assert item["loc"] == ["body", "image_urls", 1]
    assert (item["type"], item["msg"], item["ctx"], item["input"]) == (
        "file_too_large",
        "File too large",
        {"max_size": 7},
        url,
    )


async def test_the_first_in_the_list_is_told(bench: Bench) -> None:
    """Of several that cannot be had, always the first one, whichever is found out first."""
    urls = [f"{FAR}/{name}" for name in "ab"]
    bench.web.slow[urls[0]] = slow = asyncio.Event()
    refusing = asyncio.create_task(bench.refusal(await bench.submit(*urls)))
    await bench.web.until(lambda: len(bench.web.asked) == 2 and bench.web.under_way == {urls[0]})
    slow.set()
    assert (await refusing)["loc"][-1] == 0


async def test_what_is_wrong_already_is_not_fetched_for(bench: Bench) -> None:
    """A broken data URI ends the request before any stranger is asked."""
    bench.web.slow[FAR] = asyncio.Event()
    item = await bench.refusal(await bench.submit(FAR, "data:image/png;base64,!"))
    assert item["loc"][-1] == 1
    assert bench.web.asked == []


async def test_only_what_the_endpoint_uses_is_prepared(bench: Bench) -> None:
    """A fifth image is not even asked for."""
    urls = [to_data_uri(make_png())] * 4
    paths = await bench.inputs.prepare(await bench.submit(*urls, FAR))
    assert len(paths) == 4
    assert bench.web.asked == []


async def test_a_cancelled_preparation_leaves_nothing(bench: Bench) -> None:
    """Neither files nor fetches outlive the task."""
    bench.web.slow[FAR] = asyncio.Event()
    job = await bench.submit(to_data_uri(make_png()), FAR)
    task = asyncio.create_task(bench.inputs.prepare(job))
    await bench.web.until(lambda: bench.web.under_way)
    assert list(bench.spool.iterdir()) != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.web.under_way == set()
    assert list(bench.spool.iterdir()) == []


async def test_a_full_disk_is_nobody_s_mistake(bench: Bench) -> None:
    """It comes out as it is, for the caller to wait and try again, and leaves room."""
    bench.web.errors[FAR] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        await bench.inputs.prepare(await bench.submit(to_data_uri(make_png()), FAR))
    assert list(bench.spool.iterdir()) == []


async def test_reading_keeps_no_image_in_memory(bench: Bench) -> None:
    """What a worker holds while its runner works has the beginning of each data URI only."""
    uri = to_data_uri(make_png() + bytes(1_000_000))
    order = await bench.inputs.read(await bench.submit(uri, FAR, sync_mode=True))
    assert order.sync_mode
    assert order.image_urls == (uri[:513], FAR)


async def test_a_bad_field_is_told_before_any_image(bench: Bench) -> None:
    """Validation is the first thing a preparation does."""
    item = await bench.refusal(await bench.submit(FAR, num_images=9))
    assert item["loc"] == ["body", "num_images"]
    assert bench.web.asked == []


async def test_the_sweep_clears_what_a_dead_server_left(bench: Bench) -> None:
    """Spooled files of a former life go at start; with none there is nothing to do."""
    inputs: InputPreparer = bench.inputs
    inputs.sweep()
    (path,) = await inputs.prepare(await bench.submit(to_data_uri(make_png())))
    inputs.sweep()
    assert not path.exists()
    assert not bench.spool.exists()


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("denied", [True, False])
async def test_no_image_is_seen_before_its_prompt_is_judged(
    make_settings: Callable[..., Settings], tmp_path: Path, expand: bool, denied: bool
) -> None:
    """Where a model writes it while the image is made, and a deny list is to judge it."""
    deny = tmp_path / "deny.txt"
    deny.write_text("unicorn")
    bench = Bench(make_settings(prompt_deny=deny if denied else None))
    await bench.store.open()
    order = await bench.inputs.read(
        await bench.submit(to_data_uri(make_png()), enable_prompt_expansion=expand)
    )
    assert bench.inputs.may_preview(order) is not (expand and denied)
    await bench.store.close()
