"""Streamed weights on a CUDA device: the same bits, and what the plan says of memory.

Skipped without one. The copying beside the arithmetic is what cannot be seen elsewhere.
"""

from typing import Any

import pytest

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.streaming import Slots, stream, to_host  # noqa: E402
from pipelines.types import LoadOptions  # noqa: E402
from tests.gpu.test_levels_cuda import REQUEST, at, draw  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch's inductor imports a module of its own that is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PROFILES = ("48gb", "32gb", "24gb")
ROUNDS, LAYERS, WIDTH = 20, 9, 2048


def load(profile: str, compiled: str) -> Flux2:
    """Load the demonstration checkpoint by a profile."""
    options = LoadOptions(model=DEMO_CHECKPOINT, compile=compiled, profile=profile)
    pipeline, _ = load_pipeline(options)
    assert isinstance(pipeline, Flux2)
    return pipeline


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """Return the pictures of weights that stay, by level."""
    pipeline = load("141gb", "off")
    return {level: draw(pipeline, at(level)) for level in ("none", "regular")}


@pytest.mark.parametrize("profile", PROFILES)
def test_streamed_weights_give_the_same_picture(profile: str, expected: dict[str, bytes]) -> None:
    """Bit for bit, at the levels whose blocks the profile has; twice, to see a slot used again."""
    pipeline = load(profile, "off")
    for level, picture in expected.items():
        told = pipeline.describe(at(level).settings)
        if level == "none" and told["precision"] != "bfloat16":
            continue
        assert draw(pipeline, at(level)) == picture
        assert draw(pipeline, at(level)) == picture


@pytest.mark.parametrize("profile", PROFILES)
def test_compiled_blocks_may_be_streamed(profile: str) -> None:
    """The same request twice gives the same picture, with all that a card is served with."""
    pipeline = load(profile, "on")
    assert draw(pipeline, REQUEST) == draw(pipeline, REQUEST)


def test_copies_and_arithmetic_do_not_run_into_each_other() -> None:
    """Many rounds through two slots without waiting for the device in between."""
    torch.manual_seed(0)
    device = torch.device("cuda")
    chain = nn.Sequential(
        *(nn.Linear(WIDTH, WIDTH, bias=False, device=device) for _ in range(LAYERS))
    ).requires_grad_(requires_grad=False)
    x = torch.randn(4096, WIDTH, device=device)

    def run(layers: Any) -> torch.Tensor:
        y = x
        for _ in range(ROUNDS):
            for layer in layers:
                y = torch.tanh(layer(y))
        return y

    expected = run(chain)
    for parameter in chain.parameters():
        parameter.data = to_host(parameter)
    slots = Slots(device)
    streamed = stream(chain, [str(number) for number in range(LAYERS)], slots)
    for _ in range(3):
        assert torch.equal(run(streamed), expected)
        slots.release()


@pytest.mark.parametrize("profile", ["141gb", "48gb", "24gb"])
def test_the_peak_is_no_higher_than_planned(profile: str) -> None:
    """For a picture of a megapixel, of the memory that torch has taken from the device."""
    pipeline = load(profile, "on")
    plan = pipeline._plan
    assert plan
    pipeline.release_memory()
    torch.cuda.reset_peak_memory_stats()
    draw(pipeline, at("high", width=1024, height=1024))
    assert torch.cuda.max_memory_allocated() <= plan.peak_bytes(4096)
