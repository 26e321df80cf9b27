"""LiteLLM, by its provider for fal and by the one for OpenAI."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import RunningServer
from tests.contract.clients.conftest import KEY, run_client
from tests.contract.conftest import Api

OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""By itself it looks for a newer list of prices at each start."""


def pixels(api: Api, answer: dict[str, Any]) -> bytes:
    """Fetch the one image of an answer."""
    (image,) = answer["data"]
    with Image.open(io.BytesIO(api.http.get(image["url"]).raise_for_status().content)) as found:
        return found.tobytes()


def test_generations_and_edits(keyed: RunningServer, keyed_api: Api, picture: Path) -> None:
    """Both providers give the same image; the base comes as an argument or from the environment."""
    told = run_client("litellm", "litellm_images.py", keyed.http, KEY, picture, env=OFFLINE)
    assert told["version"] == "1.110.2"
    made = {
        way: pixels(keyed_api, told[way]) for way in ("generation", "by_variable", "openai", "edit")
    }
    assert made["generation"] == made["by_variable"] == made["openai"]
    assert made["edit"] != made["generation"]
    assert told["wrong_key"] == 401
