"""The prepare step: URLs to local files, errors to the exact list index."""

import base64
import io

import pytest
from PIL import Image

from server.errors import InputError
from server.files import FileStore
from server.inputs import InputPreparer
from server.settings import Settings

pytestmark = pytest.mark.anyio


def make_png(colour: str = "red") -> bytes:
    """Make a small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 80), colour).save(buffer, "PNG")
    return buffer.getvalue()


def to_data_uri(data: bytes, kind: str = "image/png") -> str:
    """Wrap bytes as fal's clients do."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def files(settings: Settings) -> FileStore:
    """Return the server's file store."""
    return FileStore(settings.data_dir / "files")


@pytest.fixture
def inputs(settings: Settings, files: FileStore) -> InputPreparer:
    """Return the prepare step over the settings' data folder."""
    return InputPreparer(settings, files)


async def test_data_uris_and_own_files_become_paths(
    inputs: InputPreparer, files: FileStore
) -> None:
    """Both ways of giving an image lead to the same pixels, in the order given."""
    name = files.write(make_png("blue"), "png")
    urls = (to_data_uri(make_png("red"), "text/html"), f"https://any.name:1/files/{name}")
    first, second = await inputs.prepare("request", urls)
    assert Image.open(first).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(second).getpixel((0, 0)) == (0, 0, 255)
    inputs.release("request")
    assert not first.exists()
    inputs.release("request")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/cat.png", "file_download_error"),
        (f"https://box/files/{'0' * 32}.png", "file_download_error"),
        ("file:///etc/passwd", "file_download_error"),
        ("", "file_download_error"),
        ("data:image/png;base64,!!!!", "image_load_error"),
        ("data:image/png;base64,AAA", "image_load_error"),
        ("data:image/png,plain", "image_load_error"),
        ("data:", "image_load_error"),
        ("data:text/plain;base64,aGVsbG8=", "unsupported_image_format"),
    ],
)
async def test_refusals_name_the_index(inputs: InputPreparer, url: str, expected: str) -> None:
    """The error's loc ends with the index of the image it is about."""
    with pytest.raises(InputError) as caught:
        await inputs.prepare("request", (to_data_uri(make_png()), url))
    (item,) = caught.value.body["detail"]
    assert item["type"] == expected
    assert item["loc"] == ["body", "image_urls", 1]
    assert item["url"].endswith(f"#{expected}")


async def test_the_size_limit_counts_decoded_bytes(settings: Settings, files: FileStore) -> None:
    """A data URI of exactly the limit passes, one byte more is too large."""
    data = make_png()
    for limit, fits in ((len(data), True), (len(data) - 1, False)):
        strict = InputPreparer(settings.model_copy(update={"reference_limit_bytes": limit}), files)
        if fits:
            await strict.prepare("request", (to_data_uri(data),))
            continue
        with pytest.raises(InputError) as caught:
            await strict.prepare("request", (to_data_uri(data),))
        (item,) = caught.value.body["detail"]
        assert (item["type"], item["ctx"]) == ("file_too_large", {"max_size": limit})


async def test_the_sweep_clears_what_a_dead_server_left(
    inputs: InputPreparer, settings: Settings
) -> None:
    """Spooled files of a former life go at start; with none there is nothing to do."""
    inputs.sweep()
    (path,) = await inputs.prepare("request", (to_data_uri(make_png()),))
    inputs.sweep()
    assert not path.exists()
    assert not (settings.data_dir / "spool").exists()
