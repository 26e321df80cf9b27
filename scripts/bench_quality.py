"""Measure how near the levels come to `none`, on the demonstration checkpoint's held-out prompts.

Beside `high` stands what its steps give without any extrapolation: as many as it computes, and no
more. `regular` is what a card with fp8 computes; on a CPU the same numbers come more slowly.
Nearness is PSNR, and SSIM (https://doi.org/10.1109/TIP.2003.819861) of luminance.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable

import cv2
import numpy as np
import torch
from bench_report import describe_machine, describe_versions, publish
from PIL import Image

from pipelines.acceleration import compute_mask
from pipelines.compat import declare_torchvision_operators
from pipelines.demonstration import DEMO_CHECKPOINT

declare_torchvision_operators()

from diffusers import Flux2Pipeline  # noqa: E402

from pipelines.denoiser import Denoiser  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.quantisation import quantise_blocks  # noqa: E402
from pipelines.transformers import Transformers, Tree  # noqa: E402
from pipelines.types import (  # noqa: E402
    Acceleration,
    GenerationRequest,
    GenerationSettings,
    Precision,
)
from scripts.train_demo_model.heldout import load_held_out  # noqa: E402
from server.telemetry import configure_logging  # noqa: E402

SIDE, STEPS = 512, 28
Draw = Callable[[str, int], Image.Image]


def main() -> int:
    """Measure, print, and append to the report."""
    options = parse_options()
    configure_logging("warning")
    load_before = os.getloadavg()[0]
    prompts = [entry.caption for entry in load_held_out().drawings[: options.prompts]]
    ways = make_ways()
    none = ways.pop("none")
    expected = [none(prompt, seed) for seed, prompt in enumerate(prompts)]
    rows = []
    for name, draw in ways.items():
        pictures = [draw(prompt, seed) for seed, prompt in enumerate(prompts)]
        pairs = list(zip(expected, pictures, strict=True))
        decibels, likeness = ([f(*pair) for pair in pairs] for f in (psnr, ssim))
        rows.append(
            f"| {name} | {statistics.median(decibels):.1f} dB, {min(decibels):.1f} dB "
            f"| {statistics.median(likeness):.4f}, {min(likeness):.4f} |"
        )
    about = (
        f"The first {len(prompts)} held-out prompts at {SIDE}x{SIDE}, {STEPS} steps, guidance 2.5, "
        f"against `none`. {describe_machine(load_before)}. {describe_versions()}."
    )
    table = ["| level | PSNR, median and least | SSIM, median and least |", "|---|---|---|", *rows]
    publish("quality", about, table, to_file=options.append)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--no-append", dest="append", action="store_false", help="print only")
    return parser.parse_args()


def make_ways() -> dict[str, Draw]:
    """Return what draws a prompt from a seed, by level."""
    device = torch.device("cpu")
    pipe = Flux2Pipeline.from_pretrained(DEMO_CHECKPOINT, local_files_only=True)
    exact = Tree(denoiser=Denoiser(pipe.transformer), precision=Precision.FLOAT32)
    fast = Tree(
        denoiser=Denoiser(quantise_blocks(pipe.transformer, Precision.FP8)),
        precision=Precision.FP8,
    )
    flux2 = Flux2(pipe, device, Transformers(exact=exact))
    eight_bit = Flux2(pipe, device, Transformers(exact=exact, fast=fast))
    computed = sum(compute_mask(Acceleration.HIGH, STEPS))

    def way(pipeline: Flux2, level: Acceleration, steps: int = STEPS) -> Draw:
        settings = GenerationSettings(
            width=SIDE,
            height=SIDE,
            num_inference_steps=steps,
            guidance_scale=2.5,
            acceleration=level,
        )

        def draw(prompt: str, seed: int) -> Image.Image:
            request = GenerationRequest(
                request_id="bench", prompt=prompt, seed=seed, num_images=1, settings=settings
            )
            (made,) = pipeline.generate(request, lambda _: None, lambda: False)
            return made.image

        return draw

    return {
        "none": way(flux2, Acceleration.NONE),
        "regular, fp8": way(eight_bit, Acceleration.REGULAR),
        f"high, without fp8: {computed} of {STEPS} steps computed": way(flux2, Acceleration.HIGH),
        f"`none` in {computed} steps": way(flux2, Acceleration.NONE, computed),
    }


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in decibels; 99 for equal pictures."""
    error = float(np.square(np.asarray(one, float) - np.asarray(other, float)).mean())
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Return the structural similarity of luminance, with the paper's window and constants."""
    x, y = (np.asarray(picture.convert("L"), float) for picture in (one, other))

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())


if __name__ == "__main__":
    sys.exit(main())
