"""The size of an image that is asked for without one: that of the first reference image."""

import pytest

from pipelines.types import floor_to_multiple, size_of_reference


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (420, 300, (416, 288)),
        (64, 64, (64, 64)),
        (1024, 1024, (1024, 1024)),
        (1025, 1024, (1024, 1008)),
        (2048, 2048, (1024, 1024)),
        (4000, 3000, (1168, 880)),
        (8000, 1000, (2896, 352)),
        (79, 632, (64, 624)),
    ],
)
def test_size_of_reference(width: int, height: int, expected: tuple[int, int]) -> None:
    """One megapixel at most, and multiples of 16 pixels."""
    assert size_of_reference(width, height) == expected


def test_it_is_the_size_that_diffusers_takes() -> None:
    """The arithmetic is that of its image processor, for shapes across the limit."""
    from pipelines.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
    from PIL import Image

    for width in range(64, 3000, 211):
        for height in range(64, 3000, 197):
            picture = Image.new("1", (width, height))
            read = Flux2ImageProcessor._resize_if_exceeds_area(picture)
            theirs = (floor_to_multiple(read.width), floor_to_multiple(read.height))
            assert size_of_reference(width, height) == theirs
