"""The runner: a child process that owns the device and makes images, one request at a time.

Started by `local` as `python -m server.runners.runner_main FD`, FD being its end of a socket
pair. When the gateway dies the socket closes, and the runner ends at once.
"""

import importlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from pipelines.errors import (
    CancelledError,
    DeviceLostError,
    FlashUnavailableError,
    OutOfMemoryError,
    PipelineError,
)
from pipelines.types import GeneratedImage, LoadOptions, Pipeline, Step
from server.children import die_with_parent
from server.images import encode
from server.runners.messages import (
    LENGTHS,
    TO_RUNNER,
    Cancel,
    Done,
    Failed,
    FailureReason,
    FromRunner,
    Image,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Run,
    ToRunner,
    from_runner,
)
from server.telemetry import configure_logging

EXIT_GATEWAY_GONE = 3
EXIT_DEVICE_LOST = 4

log = structlog.get_logger(__name__)

FAILURES: dict[type[PipelineError], FailureReason] = {
    CancelledError: "cancelled",
    OutOfMemoryError: "out_of_memory",
    FlashUnavailableError: "unavailable",
}
"""What a request may fail of while the runner stays well."""

PipelineFactory = Callable[[LoadOptions], tuple[Pipeline, str]]


class Runner:
    """Reads orders from the socket, works on one at a time, and reports on the same socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._write_lock = threading.Lock()
        self._orders: queue.SimpleQueue[Load | Run] = queue.SimpleQueue()
        self._cancelled: str | None = None

    def serve(self) -> None:
        """Load, then run orders until the gateway hangs up (which ends the process)."""
        threading.Thread(target=self._read_orders, name="orders", daemon=True).start()
        first = self._orders.get()
        if not isinstance(first, Load):
            raise TypeError(f"the first order must be load, not {first.kind}")
        configure_logging(first.log_level)
        pipeline = self._load(first)
        # One thread: encoding the finished image overlaps the making of the next one.
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
            while pipeline:
                order = self._orders.get()
                if isinstance(order, Run):
                    self._run(pipeline, order, encoder)

    def _load(self, order: Load) -> Pipeline | None:
        started = time.monotonic()
        try:
            module_name, _, function_name = order.pipeline_factory.partition(":")
            factory: PipelineFactory = getattr(importlib.import_module(module_name), function_name)
            pipeline, description = factory(order.options)
        except Exception as error:
            log.exception("the pipeline cannot be loaded")
            reason = str(error) if isinstance(error, PipelineError) else repr(error)
            self._send(LoadFailed(reason=reason))
            return None
        seconds = round(time.monotonic() - started, 3)
        self._send(Ready(description=description, load_seconds=seconds))
        return pipeline

    def _run(self, pipeline: Pipeline, order: Run, encoder: ThreadPoolExecutor) -> None:
        request = order.request

        def on_step(step: Step) -> None:
            self._send(
                Progress(
                    request_id=request.request_id,
                    stage=step.stage,
                    image_index=step.image_index,
                    step=step.step,
                    steps=step.steps,
                )
            )

        def is_cancelled() -> bool:
            return self._cancelled == request.request_id

        def generate() -> float:
            started = time.monotonic()
            sent = [
                encoder.submit(self._send_image, order, generated)
                for generated in pipeline.generate(request, on_step, is_cancelled)
            ]
            seconds = time.monotonic() - started
            for future in sent:
                future.result()
            return seconds

        try:
            applied = dict(pipeline.describe(request.settings))
            inference_seconds = _with_one_retry(generate, pipeline)
        except tuple(FAILURES) as error:
            self._fail(order, FAILURES[type(error)], error)
        except DeviceLostError:
            log.exception("the device is lost", request_id=request.request_id)
            os._exit(EXIT_DEVICE_LOST)
        except Exception as error:
            log.exception("the request failed", request_id=request.request_id)
            self._fail(order, "error", error)
        else:
            timings = {"inference": round(inference_seconds, 4)}
            self._send(
                Done(
                    request_id=request.request_id,
                    prompt=request.prompt,
                    timings=timings,
                    applied=applied,
                )
            )

    def _send_image(self, order: Run, generated: GeneratedImage) -> None:
        encoded = encode(generated.image, order.output_format)
        message = Image(
            request_id=order.request.request_id,
            index=generated.index,
            content_type=encoded.content_type,
            width=encoded.width,
            height=encoded.height,
            has_nsfw_concept=False,  # the gateway starts without a checker only when told so
        )
        self._send(message, encoded.data)

    def _fail(self, order: Run, reason: FailureReason, error: Exception) -> None:
        detail = str(error) if reason == "unavailable" else f"{type(error).__name__}: {error}"
        self._send(Failed(request_id=order.request.request_id, reason=reason, detail=detail))

    def _send(self, message: FromRunner, payload: bytes = b"") -> None:
        frame = from_runner(message, payload)
        try:
            with self._write_lock:
                self._connection.sendall(frame)
        except OSError:
            os._exit(EXIT_GATEWAY_GONE)

    def _read_orders(self) -> None:
        with self._connection.makefile("rb") as stream:
            while lengths := stream.read(LENGTHS.size):
                header_bytes, _ = LENGTHS.unpack(lengths)
                order: ToRunner = TO_RUNNER.validate_json(stream.read(header_bytes))
                if isinstance(order, Cancel):
                    self._cancelled = order.request_id
                else:
                    self._orders.put(order)
        os._exit(EXIT_GATEWAY_GONE)


def _with_one_retry(generate: Callable[[], float], pipeline: Pipeline) -> float:
    """Generate; when memory runs out, free what is cached and try once more, alone.

    An image that was sent before is simply sent again: the gateway keeps the last of each index.
    """
    try:
        return generate()
    except OutOfMemoryError:
        log.warning("out of memory, trying once more")
    # Outside the except block, so that the failed try's frames no longer hold its tensors.
    pipeline.release_memory()
    return generate()


def main() -> None:
    """Serve the gateway at the other end of the socket whose descriptor is the argument."""
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        Runner(connection).serve()


if __name__ == "__main__":
    main()
