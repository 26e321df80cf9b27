"""The pipeline and the encoder, called directly: one input a line in, its seconds a line out.

Argument: the model's folder.
"""

import json
import sys
import time
from pathlib import Path

from pipelines.loading import load_pipeline
from pipelines.types import GenerationRequest, LoadOptions
from server.catalogue import find_endpoint
from server.images import encode
from server.telemetry import configure_logging


def main() -> None:
    """Answer until the input ends."""
    configure_logging("warning")  # on standard error: figures alone are on standard output
    pipeline, _ = load_pipeline(LoadOptions(model=Path(sys.argv[1]), device="cpu"))
    for line in sys.stdin:
        order = find_endpoint("fal-ai/flux-2").parse(json.loads(line))
        request = GenerationRequest(
            request_id="bare",
            prompt=order.prompt,
            seed=order.seed,
            num_images=order.num_images,
            settings=order.settings,
        )
        started = time.perf_counter()
        for made in pipeline.generate(request, lambda _: None, lambda: False):
            encode(made.image, order.output_format)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
