"""Settings over a fresh data folder, and runners that need no model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.types import Model
from server.settings import Settings
from tests.faults.model_folders import make_model_folder

MakeSettings = Callable[..., Settings]

FAULTS = Path(__file__).parent.parent / "faults"


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the only loop the server supports."""
    return "asyncio"


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """Return a function that makes settings over a fresh data folder.

    Its arguments replace single fields. Runners use the instant fault pipeline.
    """
    paths = [str(FAULTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "data_dir": tmp_path / "data",
            "model": tmp_path,
            "safety": "off",
            "pipeline_factory": "fault_pipelines:instant",
            "drain_seconds": 5,
        }
        return Settings(**{**values, **changes})

    return make


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    """Return settings without any changes."""
    return make_settings()


@pytest.fixture
def folders(tmp_path: Path) -> dict[Model, Path]:
    """Return the folders of two models."""
    models = (Model.DEV, Model.KLEIN_4B)
    return {model: make_model_folder(tmp_path / model, model) for model in models}
