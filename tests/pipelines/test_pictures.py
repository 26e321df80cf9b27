"""Pictures for a language model: in one row, small, and never enlarged."""

from pathlib import Path

import pytest
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image, ImageChops, ImageStat

from pipelines.pictures import open_reduced, reduce, side_by_side

AREA = 768 * 768


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return how far two pictures are apart on average, seen from so far that noise is grey."""
    small = [picture.resize((80, 40), Image.Resampling.BOX) for picture in (one, other)]
    return max(ImageStat.Stat(ImageChops.difference(*small)).mean)


def test_a_row_is_that_of_diffusers(references: tuple[Path, ...]) -> None:
    """Joined on white and centred; that each is reduced first can hardly be seen."""
    pictures = [Image.open(path).convert("RGB") for path in references]
    joined = Flux2ImageProcessor.concatenate_images(pictures)
    expected = Flux2ImageProcessor._resize_if_exceeds_area(joined, AREA)
    row = side_by_side(references, AREA)
    assert abs(row.width - expected.width) <= len(references)
    assert abs(row.height - expected.height) <= 1
    assert row.width * row.height <= AREA
    assert difference(row, expected) < 1.5


def test_small_pictures_are_not_touched(references: tuple[Path, ...]) -> None:
    """Below the area a row is diffusers' to the bit, and a single one the picture itself."""
    pictures = [Image.open(path).convert("RGB") for path in references[:2]]
    row = side_by_side(references[:2], AREA)
    assert row.tobytes() == Flux2ImageProcessor.concatenate_images(pictures).tobytes()
    assert side_by_side(references[:1], AREA).tobytes() == pictures[0].tobytes()
    assert open_reduced(references[0], AREA).tobytes() == pictures[0].tobytes()


@pytest.mark.parametrize("size", [(4000, 500), (500, 4000), (2000, 2000), (3000, 1)])
def test_large_pictures_keep_their_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    """Whatever the shape, the area is kept to and no side is lost."""
    path = tmp_path / "0.png"
    picture = Image.new("L", size, "gray")
    picture.save(path)
    for made in (open_reduced(path, 10_000), reduce(picture, 10_000)):
        assert made.mode == "RGB"
        assert min(made.size) >= 1
        assert made.width * made.height <= max(10_000, 3000)
        assert min(size) == 1 or made.width / made.height == pytest.approx(size[0] / size[1], 0.1)


def test_what_is_no_picture_is_an_error(tmp_path: Path) -> None:
    """The caller of this decides what to do without it."""
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify"):
        side_by_side([tmp_path / "0.png"], AREA)
