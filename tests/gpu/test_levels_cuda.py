"""Levels on a CUDA device: how near they are to `none`, and that they leave nothing behind.

Skipped without one. The demonstration checkpoint is what is drawn with: random weights blow up
every rounding, so they would say nothing of nearness.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.errors import CancelledError, OutOfMemoryError  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.types import (  # noqa: E402
    Acceleration,
    GenerationRequest,
    GenerationSettings,
    LoadOptions,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch's inductor imports a module of its own that is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LEAST_PSNR = {"none": 40.0, "regular": 30.0, "high": 28.0}
"""Against `none` without compilation, in decibels."""

REQUEST = GenerationRequest(
    request_id="test",
    prompt="a large red circle in the center on a white background",
    seed=5,
    num_images=1,
    settings=GenerationSettings(width=512, height=512, num_inference_steps=28, guidance_scale=2.5),
)


def load(compiled: str) -> Flux2:
    """Load the demonstration checkpoint onto the card, in bfloat16."""
    pipeline, _ = load_pipeline(LoadOptions(model=DEMO_CHECKPOINT, compile=compiled))
    assert isinstance(pipeline, Flux2)
    return pipeline


@pytest.fixture(scope="module")
def compiled() -> Iterator[Flux2]:
    """Return the pipeline as it is served on a card."""
    pipeline = load("on")
    yield pipeline
    del pipeline
    gc.collect()


@pytest.fixture(scope="module")
def expected() -> bytes:
    """Return the picture that no level, kernel or compiler has touched."""
    return draw(load("off"), REQUEST)


def draw(flux2: Flux2, request: GenerationRequest) -> bytes:
    """Return the one picture of a request."""
    (made,) = flux2.generate(request, lambda _: None, lambda: False)
    return made.image.tobytes()


def at(level: Acceleration | str, **changes: Any) -> GenerationRequest:
    """Return the request at another level."""
    settings = replace(REQUEST.settings, acceleration=Acceleration(level), **changes)
    return replace(REQUEST, settings=settings)


@pytest.mark.parametrize("level", Acceleration)
def test_a_level_is_near_none(compiled: Flux2, expected: bytes, level: Acceleration) -> None:
    """With compiled blocks, the best kernel and, where the card can, 8-bit weights."""
    one, other = (
        np.frombuffer(data, np.uint8).astype(float)
        for data in (draw(compiled, at(level)), expected)
    )
    error = float(((one - other) ** 2).mean())
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= LEAST_PSNR[level.value]


def test_nothing_of_a_request_shows_in_the_next(compiled: Flux2) -> None:
    """Each level again after all others, another size, flash and an abort: the same to the bit."""
    before = {level: draw(compiled, at(level)) for level in Acceleration}
    draw(compiled, at("high", width=768))
    flash = replace(REQUEST.settings, flash=True, num_inference_steps=8)
    draw(compiled, replace(REQUEST, settings=flash))
    asked = iter([False] * 9 + [True])
    with pytest.raises(CancelledError):
        list(compiled.generate(at("high"), lambda _: None, lambda: next(asked)))
    assert {level: draw(compiled, at(level)) for level in Acceleration} == before


def test_memory_comes_back_after_many_requests(compiled: Flux2) -> None:
    """Twenty of them, an abort, and one that does not fit: within two per cent of before."""
    draw(compiled, at("high"))
    compiled.release_memory()
    before = torch.cuda.memory_allocated()
    for number in range(20):
        draw(compiled, at(tuple(Acceleration)[number % 3], num_inference_steps=12))
    with pytest.raises(CancelledError):
        list(compiled.generate(at("none"), lambda _: None, iter([False, False, True]).__next__))
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 64 * 2**20, dtype=torch.uint8, device="cuda")
    with pytest.raises(OutOfMemoryError):
        draw(compiled, at("high", width=2048, height=2048))
    del hog
    compiled.release_memory()
    assert torch.cuda.memory_allocated() <= 1.02 * before
