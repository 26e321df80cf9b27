"""Klein, distilled and base, against diffusers' own: the same bits, with guidance as it has it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from structlog.testing import capture_logs

from pipelines.acceleration import compute_mask
from pipelines.errors import CancelledError, FlashUnavailableError
from pipelines.flux2 import Flux2
from pipelines.transformers import Transformers
from pipelines.types import Acceleration, GenerationRequest, Stage, Step
from tests.pipelines.conftest import load_on_cpu
from tests.pipelines.test_flux2 import (
    PROMPT,
    ignore,
    make_images,
    make_latents,
    make_request,
    never,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LONG: dict[str, Any] = {"num_inference_steps": 14, "width": 128}


def load_oracle(folder: Path) -> Any:
    """Load diffusers' own pipeline over the same checkpoint, as anybody would."""
    pipe = Flux2KleinPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def oracle(klein_model: Path, klein: Flux2) -> Any:  # noqa: ARG001  (loading prepares imports)
    """Return diffusers' pipeline over the distilled klein."""
    return load_oracle(klein_model)


@pytest.fixture(scope="module")
def base_oracle(klein_base_model: Path, klein_base: Flux2) -> Any:  # noqa: ARG001
    """Return diffusers' pipeline over the base klein."""
    return load_oracle(klein_base_model)


def call_oracle(pipe: Any, request: GenerationRequest, seed: int) -> tuple[Any, torch.Tensor]:
    """Make an image with `Flux2KleinPipeline.__call__`; return it and the tokens before decoding.

    That has no negative prompt of words, only of embeddings.
    """
    settings = request.settings
    seen: list[torch.Tensor] = []

    def note(_pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        return given

    with torch.no_grad():
        negative_embeds, _ = pipe.encode_prompt(settings.negative_prompt)
    images = [Image.open(path).convert("RGB") for path in request.reference_images]
    output = pipe(
        image=images or None,
        prompt=request.prompt,
        negative_prompt_embeds=negative_embeds if settings.negative_prompt else None,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.num_inference_steps,
        sigmas=list(settings.sigmas) if settings.sigmas else None,
        guidance_scale=settings.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=note,
    )
    return output.images[0], seen[-1]


Case = Callable[[tuple[Path, ...]], GenerationRequest]
CASES: dict[str, Case] = {
    "text to image": lambda _refs: make_request(guidance_scale=5.0),
    "landscape_4_3": lambda _refs: make_request(
        width=1024, height=768, guidance_scale=5.0, num_inference_steps=2
    ),
    "portrait": lambda _refs: make_request(width=144, height=256, guidance_scale=3.5, seed=-3),
    "negative prompt": lambda _refs: make_request(guidance_scale=5.0, negative_prompt="blurry"),
    "no guidance": lambda _refs: make_request(guidance_scale=1.0, negative_prompt="blurry"),
    "less than none": lambda _refs: make_request(guidance_scale=0.5),
    "one reference": lambda refs: make_request(references=refs[:1], guidance_scale=5.0),
    "a reference that is scaled down": lambda refs: make_request(
        references=refs[2:], guidance_scale=1.0, num_inference_steps=1
    ),
    "two references": lambda refs: make_request(
        references=refs[:2], guidance_scale=5.0, negative_prompt="blurry"
    ),
    "custom sigmas": lambda _refs: make_request(
        sigmas=(1.0, 0.65, 0.05), num_inference_steps=3, guidance_scale=2.5
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["distilled", "base"])
def test_equals_flux2_klein_pipeline_bit_for_bit(
    request: pytest.FixtureRequest, references: tuple[Path, ...], kind: str, case: str
) -> None:
    """Latents are equal to the bit and pictures to the pixel, for every kind of request."""
    names = {"distilled": ("klein", "oracle"), "base": ("klein_base", "base_oracle")}
    pipeline, pipe = (request.getfixturevalue(name) for name in names[kind])
    wanted = CASES[case](references)
    expected, expected_latents = call_oracle(pipe, wanted, wanted.seed)
    assert torch.equal(make_latents(pipeline, wanted), expected_latents)
    (made,) = make_images(pipeline, wanted)
    assert made.image.size == expected.size
    assert made.image.tobytes() == expected.tobytes()


def test_each_image_equals_its_own_call(
    klein_base: Flux2, base_oracle: Any, references: tuple[Path, ...]
) -> None:
    """Image i of a request is what seed + i gives alone, negative prompt and all."""
    wanted = make_request(
        num_images=2,
        seed=41,
        references=references[:1],
        guidance_scale=5.0,
        negative_prompt="blurry",
    )
    images = make_images(klein_base, wanted)
    assert [image.seed for image in images] == [41, 42]
    for image in images:
        expected, _ = call_oracle(base_oracle, wanted, image.seed)
        assert image.image.tobytes() == expected.tobytes()
    assert len({image.image.tobytes() for image in images}) == 2


def test_a_distilled_model_ignores_guidance(klein: Flux2) -> None:
    """Neither how strongly nor away from what changes a bit, and one pass is all it makes."""
    runs: list[None] = []
    block = klein._pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_hook(lambda *_: runs.append(None))
    plain = make_latents(klein, make_request(guidance_scale=1.0))
    guided = make_request(guidance_scale=5.0, negative_prompt="blurry")
    assert torch.equal(make_latents(klein, guided), plain)
    hook.remove()
    assert len(runs) == 2 * guided.settings.num_inference_steps
    assert klein.describe(guided.settings)["guidance_scale"] == "1"


def test_a_base_model_is_led_away_from_the_negative_prompt(klein_base: Flux2) -> None:
    """Which tells in the picture, and where it is the prompt itself nothing is left to lead."""
    plain, guided, other, same = (
        make_latents(klein_base, make_request(guidance_scale=scale, negative_prompt=negative))
        for scale, negative in ((1.0, ""), (5.0, ""), (5.0, "blurry"), (5.0, PROMPT))
    )
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, other)
    assert torch.equal(same, plain)
    told = [
        klein_base.describe(make_request(guidance_scale=scale).settings)["guidance_scale"]
        for scale in (0.0, 1.0, 5.0)
    ]
    assert told == ["1", "1", "5"]


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_high_leaves_steps_out_of_every_pass(klein_base: Flux2, scale: float) -> None:
    """Both passes are extrapolated at the same steps, which shows in the picture."""
    none = make_request(**LONG, guidance_scale=scale)
    high = make_request(**LONG, guidance_scale=scale, acceleration=Acceleration.HIGH)
    runs: list[None] = []
    block = klein_base._pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_hook(lambda *_: runs.append(None))
    latents = make_latents(klein_base, high)
    hook.remove()
    passes = 2 if scale > 1 else 1
    computed = sum(compute_mask(Acceleration.HIGH, 14))
    assert len(runs) == passes * computed < passes * 14
    assert klein_base.describe(high.settings)["computed_steps"] == str(computed)
    assert latents.isfinite().all()
    assert not torch.equal(latents, make_latents(klein_base, none))


def test_a_request_leaves_no_trace_in_the_next(
    klein_base: Flux2, references: tuple[Path, ...]
) -> None:
    """Other guidance, another negative prompt, references and a cancelled run change nothing."""
    request = make_request(guidance_scale=5.0, negative_prompt="blurry")
    before = make_latents(klein_base, request)
    make_images(klein_base, make_request(guidance_scale=3.0, negative_prompt="dark"))
    make_images(klein_base, make_request(references=references[:2], guidance_scale=5.0))
    make_images(klein_base, make_request(**LONG, acceleration=Acceleration.HIGH))
    asked = iter([False] * 3 + [True])
    with pytest.raises(CancelledError):
        list(klein_base.generate(request, ignore, lambda: next(asked)))
    assert torch.equal(make_latents(klein_base, request), before)


def test_progress_counts_steps_not_passes(klein_base: Flux2) -> None:
    """Two passes are one step, for progress and for a cancel, which ends the request there."""
    request = make_request(guidance_scale=5.0)
    steps: list[Step] = []
    list(klein_base.generate(request, steps.append, never))
    denoised = [Step(Stage.DENOISE, 0, step, 4) for step in (1, 2, 3, 4)]
    assert steps == [Step(Stage.ENCODE, 0, 1, 1), *denoised, Step(Stage.DECODE, 0, 1, 1)]
    asked = iter([False] * 3 + [True])
    del steps[:]
    with pytest.raises(CancelledError):
        list(klein_base.generate(request, steps.append, lambda: next(asked)))
    assert steps == [Step(Stage.ENCODE, 0, 1, 1), *denoised[:2]]


def test_previews_show_what_is_drawn_and_change_nothing(klein_base: Flux2) -> None:
    """Of what the two passes together lead to."""
    request = make_request(**LONG, guidance_scale=5.0)
    steps: list[Step] = []
    (watched,) = klein_base.generate(replace(request, previews=True), steps.append, never)
    assert any(step.preview for step in steps)
    assert watched.image.tobytes() == make_images(klein_base, request)[0].image.tobytes()


def test_no_klein_has_a_flash_lora_and_none_is_missed(klein_model: Path) -> None:
    """Nothing is said of it at load; who asks for flash hears it."""
    with capture_logs() as lines:
        klein = load_on_cpu(klein_model)
    assert [line for line in lines if line["log_level"] in ("warning", "error")] == []
    assert not any("LoRA" in str(line) for line in lines)
    with pytest.raises(FlashUnavailableError, match="no flash LoRA for this model"):
        make_images(klein, make_request(flash=True))


def test_expansion_is_what_klein_does_not_have(klein: Flux2) -> None:
    """A prompt is used as it is, and no image is looked at twice."""
    (made,) = make_images(klein, make_request(expand_prompt=True))
    assert made.prompt == PROMPT
    assert klein.second_look is None


def test_warming_up_runs_what_a_request_will(klein_base: Flux2) -> None:
    """A step with and one without a reference, by the prompt reader that this model has."""
    tree = klein_base._transformers.all[0]
    compiled = Transformers(exact=replace(tree, compiled=True, adapted=None))
    sizes: list[int] = []
    block = tree.denoiser.transformer.transformer_blocks[0]
    hook = block.register_forward_hook(
        lambda _module, _args, kwargs, _out: sizes.append(kwargs["hidden_states"].shape[1]),
        with_kwargs=True,
    )
    Flux2(klein_base._pipe, CPU, compiled).warm_up()
    hook.remove()
    assert sizes == [3072, 6144]
