"""One run of the training command for all tests of its stages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.train_demo_model.__main__ import main
from scripts.train_demo_model.conditions import Encoder


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
