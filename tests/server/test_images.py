"""Pictures as bytes: what is encoded is what the model made."""

import io

import pytest
from PIL import Image

from server.images import encode
from server.schemas import OutputFormat


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_encoded_files_are_what_they_say(output_format: OutputFormat) -> None:
    """The bytes, the content type and the size agree."""
    encoded = encode(Image.new("RGB", (96, 64), "teal"), output_format)
    opened = Image.open(io.BytesIO(encoded.data))
    assert opened.get_format_mimetype() == encoded.content_type == f"image/{output_format.value}"
    assert opened.size == (encoded.width, encoded.height) == (96, 64)


def test_png_is_exact() -> None:
    """What a PNG gives back is what the model made."""
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    encoded = encode(image, OutputFormat.PNG)
    assert Image.open(io.BytesIO(encoded.data)).tobytes() == image.tobytes()
