"""Our loop against diffusers' own: the same bits, and none of the shared state."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.normalization import AdaLayerNormContinuous
from PIL import Image

from pipelines.acceleration import compute_mask
from pipelines.errors import CancelledError, DeviceLostError, OutOfMemoryError
from pipelines.flux2 import Flux2
from pipelines.types import (
    Acceleration,
    GeneratedImage,
    GenerationRequest,
    GenerationSettings,
    Stage,
    Step,
)

PROMPT = "a lighthouse, oil on canvas"


def ignore(_step: Step) -> None:
    """Take no note of progress."""


def never() -> bool:
    """Never cancel."""
    return False


def make_request(
    *, num_images: int = 1, seed: int = 7, references: tuple[Path, ...] = (), **changes: Any
) -> GenerationRequest:
    """Make a small request; `changes` go into its settings."""
    settings = {"width": 192, "height": 128, "num_inference_steps": 4, "guidance_scale": 2.5}
    return GenerationRequest(
        request_id="test",
        prompt=PROMPT,
        seed=seed,
        num_images=num_images,
        settings=GenerationSettings(**{**settings, **changes}),
        reference_images=references,
    )


def make_images(flux2: Flux2, request: GenerationRequest) -> list[GeneratedImage]:
    """Run a request to its end."""
    return list(flux2.generate(request, ignore, never))


def make_latents(flux2: Flux2, request: GenerationRequest) -> torch.Tensor:
    """Run a one-image request up to the tokens before the decoder."""
    settings = request.settings
    negative_prompt = flux2._recipe.negative_prompt(settings)
    condition = flux2.encode(request.prompt, request.reference_images, negative_prompt)
    latents, ids = flux2.prepare(request.seed, settings.width, settings.height)
    return flux2.denoise(latents, ids, condition, settings, 0, ignore, never)


def call_oracle(oracle: Any, request: GenerationRequest, seed: int, output_type: str) -> Any:
    """Make the same image with `Flux2Pipeline.__call__`."""
    settings = request.settings
    images = [Image.open(path).convert("RGB") for path in request.reference_images]
    output = oracle(
        image=images or None,
        prompt=request.prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.num_inference_steps,
        sigmas=list(settings.sigmas) if settings.sigmas else None,
        guidance_scale=settings.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type=output_type,
    )
    return output.images


CASES: dict[str, Callable[[tuple[Path, ...]], GenerationRequest]] = {
    "text to image": lambda _refs: make_request(),
    "landscape_4_3, 8 steps": lambda _refs: make_request(
        width=1024, height=768, num_inference_steps=8
    ),
    "guidance 7": lambda _refs: make_request(guidance_scale=7.0),
    "negative seed": lambda _refs: make_request(seed=-3),
    "one reference": lambda refs: make_request(references=refs[:1]),
    "three references": lambda refs: make_request(references=refs),
    "custom sigmas": lambda _refs: make_request(
        sigmas=(1.0, 0.6509, 0.2932, 0.0495), num_inference_steps=4
    ),
    "custom sigmas and a reference": lambda refs: make_request(
        sigmas=(1.0, 0.5, 0.25), num_inference_steps=3, references=refs[1:2]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_flux2_pipeline_bit_for_bit(
    flux2: Flux2, oracle: Any, references: tuple[Path, ...], case: str
) -> None:
    """Latents are equal to the bit and pictures to the pixel, for every kind of request."""
    request = CASES[case](references)
    expected = call_oracle(oracle, request, request.seed, "latent")
    assert torch.equal(make_latents(flux2, request), expected)
    (picture,) = make_images(flux2, request)
    (expected_picture,) = call_oracle(oracle, request, request.seed, "pil")
    assert picture.image.size == expected_picture.size
    assert picture.image.tobytes() == expected_picture.tobytes()


def test_each_of_four_images_equals_its_own_call(
    flux2: Flux2, oracle: Any, references: tuple[Path, ...]
) -> None:
    """Image i of a request is what seed + i gives alone, in our loop and in diffusers'."""
    request = make_request(num_images=4, seed=41, references=references[:1])
    images = make_images(flux2, request)
    assert [image.seed for image in images] == [41, 42, 43, 44]
    assert [image.index for image in images] == [0, 1, 2, 3]
    for image in images:
        alone = make_request(seed=image.seed, references=references[:1])
        assert make_images(flux2, alone)[0].image.tobytes() == image.image.tobytes()
        (expected,) = call_oracle(oracle, request, image.seed, "pil")
        assert image.image.tobytes() == expected.tobytes()
    assert len({image.image.tobytes() for image in images}) == 4


def test_a_request_leaves_no_trace_in_the_next(flux2: Flux2, references: tuple[Path, ...]) -> None:
    """Another size, other sigmas, references and a cancelled run change nothing afterwards."""
    before = make_images(flux2, make_request())[0].image.tobytes()
    make_images(flux2, make_request(width=256, height=256, num_inference_steps=6))
    make_images(flux2, make_request(sigmas=(1.0, 0.2), num_inference_steps=2))
    make_images(flux2, make_request(references=references[:2]))
    asked = iter([False, False, True])
    with pytest.raises(CancelledError):
        list(flux2.generate(make_request(), ignore, lambda: next(asked)))
    assert make_images(flux2, make_request())[0].image.tobytes() == before


LONG: dict[str, Any] = {"num_inference_steps": 14, "width": 128}


def test_regular_without_a_gpu_is_none(flux2: Flux2) -> None:
    """Where nothing is quantised, the levels that compute every step make the same image."""
    none, regular = (
        make_images(flux2, make_request(**LONG, acceleration=level))[0].image
        for level in (Acceleration.NONE, Acceleration.REGULAR)
    )
    assert none.tobytes() == regular.tobytes()


def test_high_with_every_step_computed_is_none(flux2: Flux2, references: tuple[Path, ...]) -> None:
    """Below twelve steps its mask is all ones, and the image is that of `none` to the bit."""
    for paths in ((), references[:1]):
        none, high = (
            make_latents(flux2, make_request(acceleration=level, references=paths))
            for level in (Acceleration.NONE, Acceleration.HIGH)
        )
        assert torch.equal(none, high)


def test_high_runs_the_blocks_only_where_its_mask_says(
    flux2: Flux2, references: tuple[Path, ...]
) -> None:
    """The others cost nothing but the ends, and what is extrapolated is not what is computed."""
    for paths in ((), references[:2]):
        runs: list[None] = []
        block = flux2._pipe.transformer.transformer_blocks[0]
        hook = block.register_forward_hook(lambda *_, runs=runs: runs.append(None))
        high = make_latents(
            flux2, make_request(**LONG, acceleration=Acceleration.HIGH, references=paths)
        )
        hook.remove()
        assert len(runs) == sum(compute_mask(Acceleration.HIGH, 14)) < 14
        none = make_latents(flux2, make_request(**LONG, references=paths))
        assert not torch.equal(high, none)


def test_high_is_the_same_whatever_ran_before(flux2: Flux2, references: tuple[Path, ...]) -> None:
    """An abort, another size, references, another level, flash: nothing is carried over."""
    request = make_request(**LONG, acceleration=Acceleration.HIGH)
    before = make_latents(flux2, request)
    asked = iter([False] * 9 + [True])
    with pytest.raises(CancelledError):
        list(flux2.generate(request, ignore, lambda: next(asked)))
    assert torch.equal(make_latents(flux2, request), before)
    for other in (
        make_request(**{**LONG, "width": 256}, acceleration=Acceleration.HIGH),
        make_request(**LONG, acceleration=Acceleration.HIGH, references=references[:2]),
        make_request(**LONG),
        make_request(flash=True),
    ):
        make_images(flux2, other)
        assert torch.equal(make_latents(flux2, request), before)


def test_flash_shows_and_leaves_no_trace(flux2: Flux2) -> None:
    """The LoRA changes its own request's image, and no bit of the next one's."""
    plain = make_request()
    before = make_latents(flux2, plain)
    flash = make_latents(flux2, make_request(flash=True))
    assert not torch.equal(flash, before)
    assert torch.equal(make_latents(flux2, plain), before)


def test_flash_is_diffusers_own_lora(flux2: Flux2, demo_model: Path) -> None:
    """But for the order of sums: here it is fused, there beside the weights."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_model / "flash", weight_name="flux.2-turbo-lora.safetensors")
    request = make_request(flash=True)
    expected = call_oracle(pipe, request, request.seed, "latent")
    error = (make_latents(flux2, request) - expected).norm() / expected.norm()
    assert error < 1e-4


@pytest.mark.parametrize("level", Acceleration)
def test_it_tells_how_an_image_is_really_made(flux2: Flux2, level: Acceleration) -> None:
    """In words that fit a header, and with the steps that are truly computed."""
    request = make_request(**LONG, acceleration=level)
    told = flux2.describe(request.settings)
    assert told["acceleration"] == level.value
    assert told["precision"] == "float32"
    assert told["steps"] == "14"
    assert told["computed_steps"] == str(sum(compute_mask(level, 14)))
    assert told["lora"] == "none"
    assert flux2.describe(make_request(flash=True).settings)["lora"] == "flux.2-turbo-lora"
    for name, value in told.items():
        assert re.fullmatch(r"[\w.+-]+", f"{name}{value}", re.ASCII)


def test_two_requests_may_take_turns(flux2: Flux2) -> None:
    """Interleaved at image boundaries, each request still gives its own images."""
    first, second = make_request(num_images=2), make_request(num_images=2, seed=99, width=128)
    expected = [
        [image.image.tobytes() for image in make_images(flux2, request)]
        for request in (first, second)
    ]
    turns = zip(
        flux2.generate(first, ignore, never), flux2.generate(second, ignore, never), strict=True
    )
    got = [(one.image.tobytes(), other.image.tobytes()) for one, other in turns]
    assert [list(images) for images in zip(*got, strict=True)] == expected


def test_progress_tells_every_step(flux2: Flux2) -> None:
    """Encode once, then every denoising step and the decode of every image, in order."""
    steps: list[Step] = []
    list(flux2.generate(make_request(num_images=2), steps.append, never))
    expected = [Step(Stage.ENCODE, 0, 1, 1)]
    for index in range(2):
        expected += [Step(Stage.DENOISE, index, step, 4) for step in (1, 2, 3, 4)]
        expected += [Step(Stage.DECODE, index, 1, 1)]
    assert steps == expected


@pytest.mark.parametrize("allowed", range(7))
def test_cancel_stops_before_the_next_step(flux2: Flux2, allowed: int) -> None:
    """A cancel at any point ends the request there: no further step, no image."""
    steps: list[Step] = []
    asked = iter([False] * allowed + [True] * 10)
    images = []
    with pytest.raises(CancelledError):
        for image in flux2.generate(make_request(num_images=2), steps.append, lambda: next(asked)):
            images.append(image)  # noqa: PERF402  (kept up to the cancel)
    # Asked once before encode, before each of 4 steps, and before decode; then image two.
    denoised = [step for step in steps if step.stage is Stage.DENOISE]
    assert len(denoised) == max(0, min(allowed - 1, 4))
    assert len(images) == (1 if allowed > 5 else 0)


def test_timings_cover_the_stages(flux2: Flux2) -> None:
    """Encoding is charged to the first image alone, and every stage took some time."""
    first, second = (image.timings for image in make_images(flux2, make_request(num_images=2)))
    assert first.encode_seconds > 0
    assert second.encode_seconds == 0
    assert min(first.denoise_seconds, first.decode_seconds, second.denoise_seconds) > 0
    assert first.total_seconds == pytest.approx(
        first.encode_seconds + first.denoise_seconds + first.decode_seconds
    )


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("too little memory"), OutOfMemoryError),
        (torch.AcceleratorError("illegal memory access"), DeviceLostError),
    ],
)
def test_device_errors_are_translated(
    flux2: Flux2, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    """Torch's device errors come out as ours, without the frames that would keep tensors alive."""

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise raised

    monkeypatch.setattr(AdaLayerNormContinuous, "forward", fail)
    with pytest.raises(expected) as caught:
        make_images(flux2, make_request())
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_reference_outside_the_model_s_limits_is_refused(flux2: Flux2, tmp_path: Path) -> None:
    """The model's own limits hold even if a caller skipped the server's check."""
    path = tmp_path / "thin.png"
    Image.new("RGB", (64, 1000)).save(path)
    with pytest.raises(ValueError, match="Aspect ratio"):
        flux2.encode(PROMPT, [path])
