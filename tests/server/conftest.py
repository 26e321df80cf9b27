"""Settings over a fresh data folder, and runners that need no model."""

from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings

FAULTS = Path(__file__).parent.parent / "faults"


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the only loop the server supports."""
    return "asyncio"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings whose runner uses the instant fault pipeline."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    return make_settings(tmp_path)


def make_settings(data_dir: Path, **changes: Any) -> Settings:
    """Make settings over `data_dir`; `changes` replace single fields."""
    values: dict[str, Any] = {
        "data_dir": data_dir / "data",
        "model": data_dir,
        "safety": "off",
        "pipeline_factory": "fault_pipelines:instant",
        "drain_seconds": 5,
    }
    return Settings(**{**values, **changes})
