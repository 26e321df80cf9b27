"""Levels and flash as a client sees them: the same answers, and a header that tells the truth."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import Api, connect, make_picture_uri

SMALL: dict[str, Any] = {"prompt": "A lighthouse", "image_size": "square", "seed": 3}
STEPS, COMPUTED = 14, 8
"""A small number of steps of which `high` leaves some out, and how many it computes."""


def read_settings(header: str) -> dict[str, str]:
    """Read `name=value, name=value`."""
    return dict(item.split("=", 1) for item in header.split(", "))


@pytest.mark.parametrize(
    ("level", "computed"), [("none", STEPS), ("regular", STEPS), ("high", COMPUTED), (None, STEPS)]
)
def test_every_result_tells_how_it_was_made(api: Api, level: str | None, computed: int) -> None:
    """On the synchronous route and from the queue; without a level it is fal's default."""
    body = {**SMALL, "num_inference_steps": STEPS} | ({"acceleration": level} if level else {})
    answer = api.run("fal-ai/flux-2", body)
    assert answer.status_code == 200
    told = read_settings(answer.headers["x-flux2-settings"])
    assert told["acceleration"] == (level or "regular")
    assert (told["steps"], told["computed_steps"]) == (str(STEPS), str(computed))
    assert (told["size"], told["guidance_scale"]) == ("512x512", "2.5")
    assert (told["precision"], told["lora"], told["compile"]) == ("float32", "none", "off")
    again = api.http.get(f"/queue/fal-ai/flux-2/requests/{answer.headers['x-fal-request-id']}")
    assert again.headers["x-flux2-settings"] == answer.headers["x-flux2-settings"]
    assert set(answer.json()["timings"]) == {"inference"}


def test_a_level_changes_neither_seed_nor_steps(api: Api) -> None:
    """What comes back beside the picture is the same."""
    answers = [
        api.run("fal-ai/flux-2", {**SMALL, "num_inference_steps": STEPS, "acceleration": level})
        for level in ("none", "high")
    ]
    assert [answer.json()["seed"] for answer in answers] == [3, 3]
    assert [read_settings(answer.headers["x-flux2-settings"])["steps"] for answer in answers] == [
        str(STEPS)
    ] * 2


@pytest.mark.parametrize(
    "endpoint_id",
    [f"fal-ai/flux-2/{name}" for name in ("flash", "flash/edit", "turbo", "turbo/edit")],
)
def test_flash_says_with_which_lora(api: Api, endpoint_id: str) -> None:
    """The Turbo LoRA, which stands in for Flash, goes by its name, in eight steps."""
    body = {**SMALL, "image_urls": [make_picture_uri()]}
    told = read_settings(api.run(endpoint_id, body).headers["x-flux2-settings"])
    assert (told["lora"], told["steps"]) == ("flux.2-turbo-lora", "8")


def test_images_are_counted_by_how_they_were_made(api: Api) -> None:
    """The metric has the level that was applied, not only asked for."""
    labels = 'acceleration="high",flash="no",precision="float32"'
    body = {**SMALL, "num_inference_steps": STEPS, "acceleration": "high", "num_images": 2}

    def count() -> float:
        (line,) = [
            line
            for line in api.http.get("/metrics").text.splitlines()
            if line.startswith(f"flux2_images_total{{{labels}}}")
        ]
        return float(line.split()[-1])

    before = count()
    assert api.run("fal-ai/flux-2", body).status_code == 200
    assert count() == before + 2


@pytest.fixture(scope="module", params=["none", "steps"])
def without_lora(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[tuple[str, RunningServer]]:
    """Return a server whose flash LoRA is not where it should be, for both wishes about that."""
    folder = tmp_path_factory.mktemp("without-lora")
    running = start_server(
        folder / "data",
        FLUX2_FLASH_LORA=str(folder / "missing.safetensors"),
        FLUX2_FLASH_FALLBACK=request.param,
    )
    yield request.param, running
    running.stop()


def test_without_the_lora_flash_says_which_file_it_wants(
    without_lora: tuple[str, RunningServer],
) -> None:
    """503 in fal's shape, unless the operator prefers eight steps without it; others just work."""
    fallback, running = without_lora
    with connect(running) as http:
        api = Api(http)
        answer = api.run("fal-ai/flux-2/flash", SMALL)
        if fallback == "none":
            assert answer.status_code == 503
            assert "missing.safetensors is missing" in answer.json()["detail"]
            assert answer.headers["x-fal-error-type"] == "runner_server_error"
        else:
            assert answer.status_code == 200
            assert read_settings(answer.headers["x-flux2-settings"])["lora"] == "none"
        assert api.run("fal-ai/flux-2", {**SMALL, "num_inference_steps": 4}).status_code == 200
