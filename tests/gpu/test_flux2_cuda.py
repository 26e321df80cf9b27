"""The same loop on a CUDA device. Skipped without one."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pipelines.errors import CancelledError, OutOfMemoryError  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.types import (  # noqa: E402
    GenerationRequest,
    GenerationSettings,
    LoadOptions,
    Stage,
    Step,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def flux2(demo_model: Path) -> Iterator[Flux2]:
    """Return our pipeline over the tiny checkpoint, on the card in its default bfloat16."""
    pipeline, description = load_pipeline(LoadOptions(model=demo_model, compile="off"))
    assert description.endswith("in bfloat16")
    assert isinstance(pipeline, Flux2)
    yield pipeline
    del pipeline
    gc.collect()


@pytest.fixture(scope="module")
def oracle(demo_model: Path, flux2: Flux2) -> Any:  # noqa: ARG001  (loading prepares imports)
    """Return diffusers' own pipeline over the same checkpoint on the same card."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda")


def make_request(side: int = 512, references: tuple[Path, ...] = ()) -> GenerationRequest:
    """Make a short request for a square image."""
    settings = GenerationSettings(
        width=side, height=side, num_inference_steps=8, guidance_scale=2.5
    )
    return GenerationRequest(
        request_id="test",
        prompt="a lighthouse",
        seed=7,
        num_images=1,
        settings=settings,
        reference_images=references,
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_equals_flux2_pipeline_bit_for_bit(
    flux2: Flux2, oracle: Any, tmp_path: Path, count: int
) -> None:
    """On the card, too, level none is exactly diffusers' own picture."""
    paths = []
    for index in range(count):
        path = tmp_path / f"{index}.png"
        Image.effect_noise((256, 192 + 32 * index), 60).convert("RGB").save(path)
        paths.append(path)
    request = make_request(references=tuple(paths))
    (made,) = flux2.generate(request, lambda _step: None, lambda: False)
    (expected,) = oracle(
        image=[Image.open(path).convert("RGB") for path in paths] or None,
        prompt=request.prompt,
        width=512,
        height=512,
        num_inference_steps=8,
        guidance_scale=2.5,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images
    assert made.image.tobytes() == expected.tobytes()


def test_a_cancel_is_seen_within_two_steps(flux2: Flux2) -> None:
    """The host runs one step ahead of the card at most, so a cancel never waits for a queue."""
    steps: list[Step] = []
    with pytest.raises(CancelledError):
        list(flux2.generate(make_request(), steps.append, lambda: len(steps) >= 3))
    assert len([step for step in steps if step.stage is Stage.DENOISE]) == 2


def test_memory_comes_back_after_running_out(flux2: Flux2) -> None:
    """Too large a request fails alone: the next one is made, in the same memory as before."""
    (before,) = flux2.generate(make_request(), lambda _step: None, lambda: False)
    torch.cuda.empty_cache()
    used_before = torch.cuda.memory_allocated()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 64 * 2**20, dtype=torch.uint8, device="cuda")
    with pytest.raises(OutOfMemoryError):
        list(flux2.generate(make_request(side=2048), lambda _step: None, lambda: False))
    del hog
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= used_before * 1.02
    (after,) = flux2.generate(make_request(), lambda _step: None, lambda: False)
    assert after.image.tobytes() == before.image.tobytes()
