"""The catalogue: from an input to the pipeline's settings, endpoint by endpoint."""

from typing import Any

import pytest

from pipelines.types import Acceleration
from server.catalogue import CATALOGUE, find_endpoint
from server.errors import InputError, RequestError
from server.family.dev import TURBO_SIGMAS
from server.family.endpoint import RANDOM_SEED_LIMIT
from server.schemas import OutputFormat


@pytest.mark.parametrize(
    ("endpoint_id", "steps", "guidance", "size", "expand", "output_format"),
    [
        ("fal-ai/flux-2", 28, 2.5, (1024, 768), False, "png"),
        ("fal-ai/flux-2-dev", 28, 2.5, (1024, 768), False, "png"),
        ("fal-ai/flux-2/flash", 8, 2.5, (1024, 768), False, "png"),
        ("fal-ai/flux-2/flash/edit", 8, 2.5, (1024, 1024), False, "png"),
        ("fal-ai/flux-2-flex", 28, 3.5, (1024, 768), True, "jpeg"),
    ],
)
def test_defaults_reach_the_pipeline(
    *,
    endpoint_id: str,
    steps: int,
    guidance: float,
    size: tuple[int, int],
    expand: bool,
    output_format: str,
) -> None:
    """The smallest input maps onto each endpoint's documented settings."""
    order = CATALOGUE[endpoint_id].parse({"prompt": "x", "image_urls": ["data:,"]})
    settings = order.settings
    assert (settings.num_inference_steps, settings.guidance_scale) == (steps, guidance)
    assert (settings.width, settings.height) == size
    assert settings.acceleration is Acceleration.REGULAR
    assert settings.expand_prompt is expand
    assert settings.check_safety is True
    assert order.output_format is OutputFormat(output_format)
    assert (order.num_images, order.sync_mode) == (1, False)
    flash = "flash" in endpoint_id
    assert settings.sigmas == (TURBO_SIGMAS if flash else None)
    assert settings.flash is flash
    assert settings.safety_tolerance == (2 if endpoint_id.endswith("flex") else None)


def test_given_values_reach_the_pipeline() -> None:
    """Every field that an endpoint has is carried through."""
    body = {
        "prompt": "a fox",
        "guidance_scale": 7,
        "seed": 11,
        "num_inference_steps": 50,
        "image_size": {"width": 1000, "height": 2048},
        "num_images": 4,
        "acceleration": "none",
        "enable_prompt_expansion": True,
        "sync_mode": True,
        "enable_safety_checker": False,
        "output_format": "webp",
        "unknown": {"is": "ignored"},
    }
    order = CATALOGUE["fal-ai/flux-2"].parse(body)
    assert (order.prompt, order.seed, order.num_images) == ("a fox", 11, 4)
    assert (order.sync_mode, order.output_format) == (True, OutputFormat.WEBP)
    settings = order.settings
    assert (settings.width, settings.height) == (992, 2048)
    assert settings.acceleration is Acceleration.NONE
    assert (settings.guidance_scale, settings.num_inference_steps) == (7.0, 50)
    assert (settings.expand_prompt, settings.check_safety) == (True, False)


def test_only_the_first_four_references_are_used() -> None:
    """A fifth image is dropped in silence, as the endpoint's page says."""
    urls = [f"https://example.com/{n}.png" for n in range(6)]
    edit = CATALOGUE["fal-ai/flux-2/flash/edit"]
    assert edit.parse({"prompt": "x", "image_urls": urls}).image_urls == tuple(urls[:4])
    plain = CATALOGUE["fal-ai/flux-2"]
    assert plain.parse({"prompt": "x", "image_urls": urls}).image_urls == ()


def test_drawn_seeds_are_exact_in_javascript_and_differ() -> None:
    """Without a seed one is drawn that a double holds exactly."""
    drawn = {CATALOGUE["fal-ai/flux-2"].parse({"prompt": "x"}).seed for _ in range(20)}
    assert len(drawn) > 10
    assert all(0 <= seed < RANDOM_SEED_LIMIT for seed in drawn)


@pytest.mark.parametrize("body", [None, [], "x", 1, {}])
def test_what_is_not_an_input_is_refused(body: Any) -> None:
    """Any JSON value gives a typed refusal, never a crash."""
    with pytest.raises(InputError):
        CATALOGUE["fal-ai/flux-2"].parse(body)


@pytest.mark.parametrize(
    ("endpoint_id", "detail"),
    [
        ("fal-ai/flux-3", 'Application "fal-ai/flux-3" not found'),
        ("fal-ai/flux-3/edit", 'Application "fal-ai/flux-3" not found'),
        ("fal-ai", 'Application "fal-ai" not found'),
        ("", 'Application "" not found'),
        ("fal-ai/flux-2/nothing/here", "Path /nothing/here not found"),
    ],
)
def test_unknown_endpoints_are_told_in_fal_s_words(endpoint_id: str, detail: str) -> None:
    """An application that is not served and a path it does not have read differently."""
    with pytest.raises(RequestError) as caught:
        find_endpoint(endpoint_id)
    assert (caught.value.status, caught.value.body) == (404, {"detail": detail})
