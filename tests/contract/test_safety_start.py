"""A server with a checker: it starts without a word on safety, and refuses prompts as fal does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import SMALL_INPUTS, Api, connect

FLUX = "fal-ai/flux-2"


@pytest.fixture(scope="module")
def checked(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Return a server on the tiny checkpoint, whose folder has a checker, with a deny list."""
    folder = tmp_path_factory.mktemp("checked")
    deny = folder / "deny.txt"
    deny.write_text("# animals\nunicorn\n")
    running = start_server(
        folder / "data",
        FLUX2_SAFETY=None,
        FLUX2_PROMPT_DENY=str(deny),
        FLUX2_TLS_PORT="none",
    )
    yield running
    running.stop()


def test_the_checker_is_told(checked: RunningServer, demo_model: Path) -> None:
    """At the start in a line, and by the probe."""
    line = (
        "safety: required; images are checked by safety_checker (ViTForImageClassification: nsfw)"
    )
    assert line in [printed.strip() for printed in checked.lines]
    with connect(checked) as http:
        ready = http.get("/health/ready").json()
    assert (ready["model"], ready["safety"]) == (demo_model.name, "required")
    assert ready["safety_checker"] == "safety_checker (ViTForImageClassification: nsfw)"


@pytest.mark.parametrize("door", ["synchronous", "queue"])
def test_a_denied_prompt_is_refused_at_every_door(checked: RunningServer, door: str) -> None:
    """A 422 with fal's words, which name no entry; the log has the entry's line, and no prompt."""
    body = {**SMALL_INPUTS[FLUX], "prompt": "a uni\u200bcorn in the woods"}
    with connect(checked) as http:
        api = Api(http)
        if door == "synchronous":
            answer = api.run(FLUX, body)
        else:
            kept = api.submit(FLUX, body)
            api.wait(kept)
            answer = api.result(kept)
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert (item["loc"], item["type"]) == (["body", "prompt"], "content_policy_violation")
    assert "material flagged by a content checker" in item["msg"]
    refused = [line for line in checked.lines if "prompt refused" in line]
    assert refused
    assert all('"deny_list_line": 2' in line and "woods" not in line for line in refused)
