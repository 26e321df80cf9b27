"""Measure what previews cost: the same request drawn with and without them, in turns.

    python -m scripts.bench_previews [--model FOLDER] [--size 512] [--steps 28] [--rounds 5]

Everything is counted that a preview takes beside the steps: painting and encoding, here even
in the same thread; the safety checker, which has a thread and a bench of its own, is left out.
Prints seconds of each way, the time that the fit took once, and the share that previews add.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.loading import load_pipeline
from pipelines.types import GenerationRequest, GenerationSettings, LoadOptions, Step
from server.images import encode
from server.schemas import OutputFormat

if TYPE_CHECKING:
    from pipelines.flux2 import Flux2


def draw(pipeline: "Flux2", size: int, steps: int, *, previews: bool) -> tuple[float, int]:
    """Draw one image; return the seconds that it took, and how many previews came."""
    count = 0

    def on_step(step: Step) -> None:
        nonlocal count
        if step.preview:
            encode(step.preview, OutputFormat.JPEG)
            count += 1

    request = GenerationRequest(
        request_id="bench",
        prompt="a red circle on a blue ground",
        seed=1,
        num_images=1,
        settings=GenerationSettings(
            width=size, height=size, num_inference_steps=steps, guidance_scale=2.5
        ),
        previews=previews,
    )
    started = time.monotonic()
    list(pipeline.generate(request, on_step, lambda: False))
    return time.monotonic() - started, count


def main() -> None:
    """Print one line of numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pipeline, _ = load_pipeline(LoadOptions(model=options.model))
    from pipelines.flux2 import Flux2  # noqa: PLC0415  (after torchvision's operators are declared)

    if not isinstance(pipeline, Flux2):
        raise TypeError("not a FLUX.2")
    draw(pipeline, options.size, options.steps, previews=False)
    started = time.monotonic()
    pipeline.fit_colours()
    fit_seconds = time.monotonic() - started
    draw(pipeline, options.size, options.steps, previews=True)
    plain, watched, count = [], [], 0
    for _ in range(options.rounds):
        plain.append(draw(pipeline, options.size, options.steps, previews=False)[0])
        seconds, count = draw(pipeline, options.size, options.steps, previews=True)
        watched.append(seconds)
    without, with_previews = statistics.median(plain), statistics.median(watched)
    sys.stdout.write(
        f"without {without:.3f} s, with {count} previews {with_previews:.3f} s: "
        f"{100 * (with_previews / without - 1):+.2f} %; the fit, once: {fit_seconds:.2f} s\n"
    )


if __name__ == "__main__":
    main()
