"""LoRAs of callers on a CUDA device: compiled, on both kinds of blocks, and leaving nothing behind.

Skipped without one.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.types import (  # noqa: E402
    Acceleration,
    GenerationRequest,
    GenerationSettings,
    LoadOptions,
    LoraUse,
)
from tests.pipelines.lora_files import make_formats  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch's inductor imports a module of its own that is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LEAST_PSNR = 25.0
"""Against what is not compiled, in decibels, after a single step: random weights blow up every
rounding."""

FORMATS = ("diffusers", "kohya", "LoKr of ai-toolkit")


@pytest.fixture(scope="module")
def pipelines(demo_model: Path) -> Iterator[tuple[Flux2, Flux2]]:
    """Return the tiny checkpoint as it is served on a card, and without compilation."""
    made = []
    for compiled in ("on", "off"):
        pipeline, _ = load_pipeline(LoadOptions(model=demo_model, compile=compiled))
        assert isinstance(pipeline, Flux2)
        made.append(pipeline)
    yield made[0], made[1]
    del made
    gc.collect()


@pytest.fixture(scope="module")
def uses(
    pipelines: tuple[Flux2, Flux2], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[LoraUse, ...]]:
    """Return sets of LoRAs of several formats: each alone, and all of them."""
    folder = tmp_path_factory.mktemp("loras")
    files = make_formats(pipelines[1]._pipe.transformer)
    for name in FORMATS:
        save_file(files[name], folder / name)
    single = [(LoraUse(folder / name, 0.2),) for name in FORMATS]
    return [*single, tuple(use for (use,) in single)]


def draw(flux2: Flux2, level: Acceleration, loras: tuple[LoraUse, ...] = ()) -> bytes:
    """Return the one picture of a request of one step."""
    settings = GenerationSettings(
        width=512, height=512, num_inference_steps=1, guidance_scale=2.5, acceleration=level
    )
    request = GenerationRequest(
        request_id="test", prompt="a lighthouse", seed=5, num_images=1, settings=settings
    )
    request = replace(request, settings=replace(settings, loras=loras))
    (made,) = flux2.generate(request, lambda _: None, lambda: False)
    return made.image.tobytes()


def psnr(one: bytes, other: bytes) -> float:
    """Return how near two pictures are."""
    first, second = (np.frombuffer(data, np.uint8).astype(float) for data in (one, other))
    return float(10 * np.log10(255**2 / max(((first - second) ** 2).mean(), 1e-9)))


@pytest.mark.parametrize("level", [Acceleration.NONE, Acceleration.REGULAR])
def test_any_set_is_near_what_is_not_compiled_and_costs_no_compilation(
    pipelines: tuple[Flux2, Flux2], uses: list[tuple[LoraUse, ...]], level: Acceleration
) -> None:
    """In the checkpoint's precision and, where the card can, on 8-bit weights; the base stays."""
    compiled, plain = pipelines
    before = draw(compiled, level)
    counters.clear()
    for loras in uses:
        picture = draw(compiled, level, loras)
        assert psnr(picture, draw(plain, level, loras)) > LEAST_PSNR
        assert picture != before
        assert draw(compiled, level) == before
    assert counters["stats"].get("unique_graphs", 0) == 0
