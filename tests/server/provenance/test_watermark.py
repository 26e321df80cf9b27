"""The watermark: found where it is, not found where it is not, also in worse copies."""

import io
import random
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw, ImageFilter

from server.images import encode
from server.provenance.markers import Marking
from server.provenance.watermark import THRESHOLD, detect, embed
from server.schemas import OutputFormat

Spoil = Callable[[Image.Image], Image.Image]


def flat() -> Image.Image:
    """Return large areas of one colour, which hide least."""
    image = Image.new("RGB", (768, 512), "teal")
    ImageDraw.Draw(image).ellipse((200, 100, 500, 400), fill="orange")
    return image


def soft() -> Image.Image:
    """Return what looks like a photograph out of focus."""
    return noise().filter(ImageFilter.GaussianBlur(3))


def noise() -> Image.Image:
    """Return noise, which hides most and disturbs most."""
    drawn = random.Random(7)
    return Image.frombytes("RGB", (512, 640), drawn.randbytes(512 * 640 * 3))


def white() -> Image.Image:
    """Return a picture that can only get darker."""
    return Image.new("RGB", (1024, 768), "white")


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "flat": flat,
    "soft": soft,
    "noise": noise,
    "white": white,
}


def as_jpeg(image: Image.Image) -> Image.Image:
    """Return the picture after JPEG of quality 80."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Image.open(io.BytesIO(buffer.getvalue()))


def half(image: Image.Image) -> Image.Image:
    """Return the picture at half its sides."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


SPOILS: dict[str, Spoil] = {
    "as it is": lambda image: image,
    "JPEG 80": as_jpeg,
    "half": half,
    "half, JPEG 80": lambda image: as_jpeg(half(image)),
    "half, doubled": lambda image: half(image).resize(image.size),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_found_in_worse_copies(name: str) -> None:
    """JPEG of quality 80 and half the size, alone and together, leave it far above the limit."""
    marked = embed(PICTURES[name]())
    scores = {what: detect(spoil(marked)).score for what, spoil in SPOILS.items()}
    assert min(scores.values()) > THRESHOLD + 2, scores


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_not_found_where_it_is_not(name: str) -> None:
    """What was not marked is far below the limit, whatever is in it."""
    assert abs(detect(PICTURES[name]()).score) < THRESHOLD - 2


@pytest.mark.parametrize("name", PICTURES)
def test_it_changes_little(name: str) -> None:
    """Never worse than 42 dB, and the same picture gets the same mark."""
    image = PICTURES[name]()
    marked = embed(image)
    before, after = image.tobytes(), marked.tobytes()
    squares = sum((a - b) ** 2 for a, b in zip(before, after, strict=True))
    assert 0 < squares / len(before) < 255**2 / 10**4.19
    assert embed(image).tobytes() == after


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_any_kind_of_picture_can_be_looked_at(mode: str) -> None:
    """Strangers bring grey, indexed and transparent pictures, and small ones."""
    assert detect(embed(flat()).convert(mode)).is_marked
    assert not detect(Image.new(mode, (3, 1))).is_marked


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_it_is_put_in_before_encoding(output_format: OutputFormat) -> None:
    """Files of every format have it when the operator wants it, and not otherwise."""
    wanted = encode(flat(), output_format, Marking(watermark=True))
    assert detect(Image.open(io.BytesIO(wanted.data))).is_marked
    assert not detect(Image.open(io.BytesIO(encode(flat(), output_format).data))).is_marked
