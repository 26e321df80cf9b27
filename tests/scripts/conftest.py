"""One run of the training command for all tests of its stages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.train_demo_model import addressing, conditions, text_encoder
from scripts.train_demo_model.__main__ import main
from scripts.train_demo_model.conditions import Encoder

FEW = 4
"""Prompts and examples where training takes dozens: these tests are about the way."""


@pytest.fixture(scope="session", autouse=True)
def few_examples() -> Iterator[None]:
    """Encode few prompts wherever training begins: that, not its steps, takes most of a try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "_FIRST_PROMPTS", FEW)
        patch.setattr(conditions, "_PROMPTS_AT_ONCE", FEW)
        patch.setattr(conditions, "_FIRST_EXAMPLES", FEW)
        patch.setattr(addressing, "_CELL_PROMPTS", 8 * FEW)
        patch.setattr(addressing, "_EXAMPLES", 2 * FEW)
        patch.setattr(text_encoder, "_BATCH", FEW)
        yield


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, few_examples: None) -> Path:  # noqa: ARG001
    """Run all stages of the recipe that learns nothing."""
    work = tmp_path_factory.mktemp("training")
    assert main([str(work), "--recipe", "try", "--device", "cpu"]) == 0
    return work


@pytest.fixture(scope="session")
def pipe(work: Path) -> Any:
    """Load what training left with nothing but diffusers."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(
        work / "checkpoint", dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def encoder(pipe: Any) -> Encoder:
    """Encode as training does."""
    return Encoder(pipe.text_encoder, pipe.tokenizer, pipe.vae, torch.device("cpu"))
