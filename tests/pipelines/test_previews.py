"""Previews: what they show, when they come, and that nobody pays for them who does not watch."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.flux2 import Flux2
from pipelines.previews import MOST_PREVIEWS, LatentColours, PreviewSeries
from pipelines.types import GenerationRequest, GenerationSettings, Step

SIDE = 256


def make_request(
    steps: int = 6, *, previews: bool = True, num_images: int = 1
) -> GenerationRequest:
    """Make a small request."""
    return GenerationRequest(
        request_id="test",
        prompt="a red circle",
        seed=3,
        num_images=num_images,
        settings=GenerationSettings(
            width=SIDE, height=SIDE, num_inference_steps=steps, guidance_scale=2.5
        ),
        previews=previews,
    )


def draw(pipeline: Flux2, request: GenerationRequest) -> tuple[list[Step], list[Image.Image]]:
    """Run a request; return the steps that have a preview, and the images."""
    told: list[Step] = []
    images = [image.image for image in pipeline.generate(request, told.append, lambda: False)]
    return [step for step in told if step.preview], images


def difference(preview: Image.Image, image: Image.Image) -> float:
    """Return the mean absolute difference from the image at the preview's size, of 255."""
    small = image.resize(preview.size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(preview, float) - np.asarray(small, float)).mean())


def test_previews_show_the_image(demonstration: Flux2) -> None:
    """The last preview is near the finished image, nearer than the first, an eighth of its size."""
    steps, (image,) = draw(demonstration, make_request())
    first, last = steps[0].preview, steps[-1].preview
    assert first is not None
    assert last is not None
    assert last.size == (SIDE // 8, SIDE // 8)
    assert difference(last, image) < 12
    assert difference(last, image) < difference(first, image)


def test_the_image_is_the_same(flux2: Flux2) -> None:
    """Watched or not, a request gives the same pixels, and only the watched one has previews."""
    steps, (watched,) = draw(flux2, make_request())
    none, (alone,) = draw(flux2, make_request(previews=False))
    assert steps
    assert not none
    assert watched.tobytes() == alone.tobytes()


@pytest.mark.parametrize("count", [2, 3, 8, 9, 28, 50])
def test_when_previews_come(count: int) -> None:
    """The first comes with the second step, there are eight at most, and none is of the last."""
    colours = LatentColours(torch.zeros(129, 12))
    series = PreviewSeries(colours, 32, 32, count)
    latents, velocity = torch.zeros(1, 4, 128), torch.zeros(1, 4, 128)
    came = []
    for index in range(count):
        series.note(latents, velocity, 0.5, index)
        if series.take():
            came.append(index + 1)
    assert came[0] == 2
    assert len(came) <= MOST_PREVIEWS


def test_every_image_has_its_own(flux2: Flux2) -> None:
    """Each image of a request has previews, told under its index."""
    steps, _ = draw(flux2, make_request(num_images=2))
    assert {step.image_index for step in steps} == {0, 1}


def test_the_fit_is_repeatable(demonstration: Flux2) -> None:
    """Two fits to one VAE paint the same bytes."""
    tokens, _ = demonstration.prepare(1, SIDE, SIDE)
    first, second = (
        demonstration.fit_colours().paint(tokens, SIDE, SIDE).numpy().tobytes() for _ in range(2)
    )
    assert first == second
