"""Klein counted from its configurations, and the plans of the cards that it is for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import DoesNotFitError
from pipelines.memory import choose_plan
from pipelines.model_size import ModelSize, read_model_size
from pipelines.plan import SMALLEST_REQUEST, USUAL_REQUEST
from pipelines.types import Precision
from tests.pipelines.test_memory import FP8, GB, INT8, MIB, make_card
from tests.pipelines.test_model_size import load, measure, write_configs

KLEIN: dict[str, dict[str, Any]] = {
    "klein-4b": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 3 * 2560,
        "guidance_embeds": False,
    },
    "klein-9b": {
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 3 * 4096,
        "guidance_embeds": False,
    },
}
"""As BFL's own code has them (`Klein4BParams`, `Klein9BParams` in its `flux2/model.py`)."""

QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
READERS: dict[str, dict[str, Any]] = {
    "klein-4b": QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "klein-9b": QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}
"""Qwen3-4B and Qwen3-8B, of which a klein has one."""


def configs_of(model: str) -> dict[str, Any]:
    """Return the configurations of a klein by its parts."""
    return {"transformer": KLEIN[model], "text_encoder": READERS[model], "vae": {}}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSize]:
    """Return what both kleins measure."""
    folder = tmp_path_factory.mktemp("sizes")
    return {
        model: read_model_size(write_configs(folder / model, configs_of(model))) for model in KLEIN
    }


def test_tiny_kleins_are_counted_to_the_parameter(
    klein_model: Path, klein_base_model: Path
) -> None:
    """Every number, against diffusers' and transformers' modules; LM head tied and not."""
    for folder in (klein_model, klein_base_model):
        assert read_model_size(folder) == measure(load(folder), 0)


@pytest.mark.parametrize(
    ("model", "transformer", "text_encoder"),
    [("klein-4b", 3.88, 4.02), ("klein-9b", 9.08, 8.19)],
)
def test_the_real_kleins_are_counted_to_the_parameter(
    tmp_path: Path, model: str, transformer: float, text_encoder: float
) -> None:
    """What their configurations build on the meta device, in billions."""
    folder = write_configs(tmp_path, configs_of(model))
    size = read_model_size(folder)
    assert size == measure(load(folder), 0)
    counts = size.transformer, size.text_encoder
    assert tuple(round(count / 1e9, 2) for count in counts) == (transformer, text_encoder)


def test_other_readers_are_counted_too(tmp_path: Path) -> None:
    """Biases, fewer layers than are read, and what a file leaves to Qwen3's defaults."""
    text = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "attention_bias": True,
    }
    folder = write_configs(tmp_path, configs_of("klein-4b") | {"text_encoder": text})
    assert read_model_size(folder) == measure(load(folder), 0)


RESIDENT, STREAMED = "resident", "streamed"
PLANS = [
    # Model, MiB of the card, 8 bits -> profile, exact, text encoder, blocks, GB of weights
    ("klein-4b", 8188, FP8, ("48gb", False, STREAMED, RESIDENT, 4.2)),
    ("klein-4b", 12282, FP8, ("48gb", False, STREAMED, RESIDENT, 4.2)),
    ("klein-4b", 16376, FP8, ("80gb", False, RESIDENT, RESIDENT, 10.5)),
    ("klein-4b", 16376, INT8, ("80gb", False, RESIDENT, RESIDENT, 10.5)),
    ("klein-4b", 16384, None, ("48gb", True, STREAMED, RESIDENT, 7.9)),
    ("klein-4b", 24564, FP8, ("141gb", True, RESIDENT, RESIDENT, 17.8)),
    ("klein-9b", 16376, FP8, ("48gb", False, STREAMED, RESIDENT, 9.6)),
    ("klein-9b", 24564, FP8, ("80gb", False, RESIDENT, RESIDENT, 21.3)),
    ("klein-9b", 46068, FP8, ("141gb", True, RESIDENT, RESIDENT, 38.7)),
]


@pytest.mark.parametrize(("model", "card_mib", "fast", "expected"), PLANS)
def test_small_cards_have_a_plan(
    sizes: dict[str, ModelSize],
    model: str,
    card_mib: int,
    fast: Precision | None,
    expected: tuple[object, ...],
) -> None:
    """What `auto` takes, in a box with 32 GB of free main memory, with room for a reference."""
    total_bytes = card_mib * MIB
    card = dataclasses.replace(
        make_card(24, fast, host_gb=32),
        total_bytes=total_bytes,
        free_bytes=total_bytes - 700_000_000,
    )
    plan = choose_plan(card, sizes[model])
    assert (
        plan.profile,
        plan.exact,
        plan.text_encoder,
        plan.blocks,
        round(plan.weights_bytes / GB, 1),
    ) == expected
    assert plan.flash is None
    assert plan.fits(USUAL_REQUEST)


def test_a_card_that_is_too_small_is_told(sizes: dict[str, ModelSize]) -> None:
    """4 GB are less than a picture takes in the VAE beside what is resident."""
    card = dataclasses.replace(make_card(24, host_gb=32), free_bytes=3 * GB)
    with pytest.raises(DoesNotFitError, match="GB are missing"):
        choose_plan(card, sizes["klein-4b"])
    plan = choose_plan(make_card(24, host_gb=32), sizes["klein-4b"])
    assert plan.peak_bytes(*SMALLEST_REQUEST) > 3 * GB
