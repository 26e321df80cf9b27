"""A real server whose pipeline needs no model and runs for as long as a test wants it to."""

import os
from pathlib import Path
from typing import Any

from tests.conftest import RunningServer, StartServer

FAULTS = Path(__file__).parent.parent / "faults"

ENDPOINT = "fal-ai/flux-2"


def fault_environment(pipeline: str = "instant") -> dict[str, str]:
    """Return the variables that give a server such a pipeline."""
    inherited = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FAULTS), inherited])),
        "FLUX2_PIPELINE_FACTORY": f"fault_pipelines:{pipeline}",
    }


def start_fault_server(
    start_server: StartServer,
    data_dir: Path,
    pipeline: str = "instant",
    *,
    wait_ready: bool = True,
    **env: str,
) -> RunningServer:
    """Start a server on a pipeline of `tests/faults`; `env` holds further settings."""
    settings = {**fault_environment(pipeline), "FLUX2_TLS_PORT": "none", **env}
    return start_server(data_dir, wait_ready=wait_ready, **settings)


def held(gate: Path | None = None) -> dict[str, Any]:
    """Return the input of a request that runs until `gate` exists, or until it is cancelled."""
    prompt = "hold" if gate is None else f"hold {gate}"
    return {"prompt": prompt, "image_size": "square", "seed": 1}


INSTANT: dict[str, Any] = {"prompt": "now", "image_size": "square", "seed": 1}
"""An input whose image is there at once."""
