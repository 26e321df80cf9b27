"""The runner: a child process that owns the device and makes images.

One request at a time is drawn. Its images are checked, encoded and sent by a second thread, which
also has its last word, while the next one is drawn already.

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
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from pipelines.errors import (
    CancelledError,
    DeviceLostError,
    FlashUnavailableError,
    LoraRefusedError,
    OutOfMemoryError,
    PipelineError,
    PromptRefusedError,
    ReferenceRefusedError,
)
from pipelines.review import keep_for_review
from pipelines.types import (
    GeneratedImage,
    LoadOptions,
    OnLoadProgress,
    Pipeline,
    SafetyOptions,
    Step,
)
from pipelines.verdicts import ImageChecker, Verdict, check_references, look
from server.children import die_with_parent
from server.images import encode
from server.provenance.markers import DEFAULT_MARKING
from server.runners.load_progress import LoadProgress
from server.runners.messages import (
    LENGTHS,
    TO_RUNNER,
    Cancel,
    Done,
    Drawn,
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
from server.runners.preview_sender import PreviewSender
from server.telemetry import configure_logging

EXIT_GATEWAY_GONE = 3
EXIT_DEVICE_LOST = 4

log = structlog.get_logger(__name__)

FAILURES: dict[type[PipelineError], FailureReason] = {
    CancelledError: "cancelled",
    OutOfMemoryError: "out_of_memory",
    FlashUnavailableError: "unavailable",
    PromptRefusedError: "prompt_refused",
    ReferenceRefusedError: "reference_refused",
    LoraRefusedError: "lora_refused",
}
"""What a request may fail of while the runner stays well."""

TOLD: tuple[FailureReason, ...] = ("unavailable", "lora_refused")
"""Whose own words are meant for callers."""

MOST_DETAIL_CHARACTERS = 2000
"""Of what is said of a failure: a file's own words may be in it."""

CHECKER_MODULE = "pipelines.safety"
"""By name: like the pipeline it imports torch, which this module must not."""

PipelineFactory = Callable[[LoadOptions, OnLoadProgress], tuple[Pipeline, str]]


class Runner:
    """Reads orders from the socket, draws one at a time, and reports on the same socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._write_lock = threading.Lock()
        self._orders: queue.SimpleQueue[Load | Run] = queue.SimpleQueue()
        self._cancels: dict[str, threading.Event] = {}
        self._marking = DEFAULT_MARKING
        self._safety: SafetyOptions | None = None
        self._checker: ImageChecker | None = None
        # One thread, so that images and last words come in order.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._previews = PreviewSender(self._encoder, self._send)

    def serve(self) -> None:
        """Load, then run orders until the gateway hangs up (which ends the process)."""
        threading.Thread(target=self._read_orders, name="orders", daemon=True).start()
        first = self._orders.get()
        if not isinstance(first, Load):
            raise TypeError(f"the first order must be load, not {first.kind}")
        configure_logging(first.log_level)
        self._marking = self._previews.marking = first.marking
        pipeline = self._load(first)
        while pipeline:
            order = self._orders.get()
            if isinstance(order, Run):
                self._run(pipeline, order)

    def _load(self, order: Load) -> Pipeline | None:
        started = time.monotonic()
        try:
            module_name, _, function_name = order.pipeline_factory.partition(":")
            factory: PipelineFactory = getattr(importlib.import_module(module_name), function_name)
            on_progress = LoadProgress(self._send)
            pipeline, description = factory(order.options, on_progress)
            on_progress.flush()
            self._load_checker(order.options, pipeline)
        except Exception as error:
            log.exception("the pipeline cannot be loaded")
            reason = str(error) if isinstance(error, PipelineError) else repr(error)
            self._send(LoadFailed(reason=reason))
            return None
        seconds = round(time.monotonic() - started, 3)
        self._send(Ready(description=description, load_seconds=seconds))
        return pipeline

    def _load_checker(self, options: LoadOptions, pipeline: Pipeline) -> None:
        self._safety = options.safety
        if options.safety:
            make_checker = importlib.import_module(CHECKER_MODULE).make_checker
            checker = make_checker(options, pipeline.second_look)
            self._checker, self._previews.checker = checker, checker.for_previews()

    def _run(self, pipeline: Pipeline, order: Run) -> None:
        """Draw the images of a request, and leave all that is to be said of it to the encoder."""
        request_id = order.request.request_id
        images: list[Future[None]] = []
        last_word = self._draw(pipeline, order, images)
        del self._cancels[request_id]
        if isinstance(last_word, Failed):
            for image in images:
                image.cancel()
        self._send(Drawn(request_id=request_id))
        self._encoder.submit(self._finish, order, last_word, images)

    def _draw(self, pipeline: Pipeline, order: Run, images: list[Future[None]]) -> Done | Failed:
        """Give each image to the encoder as it is drawn; return what the request came to."""
        request, prompt = order.request, order.request.prompt
        applied: dict[str, str] = {}

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
            if step.preview:
                self._previews.send(order, step, step.preview)

        def generate() -> float:
            nonlocal prompt
            started = time.monotonic()
            if self._safety and self._safety.check_references:
                check_references(self._checker, request.reference_images, request.settings)
            # This, too, takes memory: the request's LoRAs come to the device.
            applied.update(pipeline.describe(request.settings))
            is_cancelled = self._cancels[request.request_id].is_set
            for generated in pipeline.generate(request, on_step, is_cancelled):
                prompt = generated.prompt
                self._previews.drop()
                image = self._encoder.submit(self._send_image, order, generated)
                images.append(image)
            return time.monotonic() - started

        try:
            inference_seconds = _with_one_retry(generate, pipeline)
        except tuple(FAILURES) as error:
            return _failed(order, _reason_of(error), error)
        except DeviceLostError:
            log.exception("the device is lost", request_id=request.request_id)
            self._encoder.shutdown()  # the request before this one may still be saved
            os._exit(EXIT_DEVICE_LOST)
        except Exception as error:
            log.exception("the request failed", request_id=request.request_id)
            return _failed(order, "error", error)
        if self._marking.watermark:
            applied["watermark"] = "on"
        return Done(
            request_id=request.request_id,
            prompt=prompt,
            timings={"inference": round(inference_seconds, 4)},
            applied=applied,
        )

    def _send_image(self, order: Run, generated: GeneratedImage) -> None:
        """Send what may leave: the image, or a black one. There is no other way out."""
        image, verdict = look(self._checker, generated.image, order.request.settings)
        if verdict.flagged:
            self._keep_for_review(order, generated, verdict)
        encoded = encode(image, order.output_format, self._marking)
        message = Image(
            request_id=order.request.request_id,
            index=generated.index,
            content_type=encoded.content_type,
            width=encoded.width,
            height=encoded.height,
            verdict=verdict.reason,
            has_nsfw_concept=verdict.flagged,
        )
        self._send(message, encoded.data)

    def _keep_for_review(self, order: Run, generated: GeneratedImage, verdict: Verdict) -> None:
        request_id = order.request.request_id
        log.info(
            "image blocked",
            request_id=request_id,
            index=generated.index,
            reason=verdict.reason.value,
            score=verdict.score,
        )
        if self._safety is None or self._safety.quarantine is None:
            return
        try:
            keep_for_review(
                self._safety.quarantine, request_id, generated.index, generated.image, verdict
            )
        except OSError as error:
            log.error("cannot keep a blocked image", request_id=request_id, reason=str(error))

    def _finish(self, order: Run, last_word: Done | Failed, images: list[Future[None]]) -> None:
        """Say the last word of a request, behind its images, whatever becomes of it.

        Nobody asks what this came to: without a last word the whole runner is taken for hung.
        """
        try:
            self._send(self._settle(order, last_word, images))
        except Exception as error:
            request_id = order.request.request_id
            log.exception("a last word cannot be said", request_id=request_id)
            detail = f"the last word cannot be said: {type(error).__name__}"
            self._send(Failed(request_id=request_id, reason="error", detail=detail))

    def _settle(
        self, order: Run, last_word: Done | Failed, images: list[Future[None]]
    ) -> Done | Failed:
        """Return the last word, now that all images are through: one of them may have failed."""
        errors = [image.exception() for image in images if not image.cancelled()]
        error = next(filter(None, errors), None)
        if error and isinstance(last_word, Done):
            log.error("an image cannot leave", request_id=last_word.request_id, exc_info=error)
            if isinstance(error, DeviceLostError):
                os._exit(EXIT_DEVICE_LOST)
            return _failed(order, _reason_of(error), error)
        return last_word

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
                    if cancel := self._cancels.get(order.request_id):
                        cancel.set()
                    continue
                if isinstance(order, Run):
                    self._cancels[order.request.request_id] = threading.Event()
                self._orders.put(order)
        os._exit(EXIT_GATEWAY_GONE)


def _reason_of(error: BaseException) -> FailureReason:
    return next((FAILURES[kind] for kind in FAILURES if isinstance(error, kind)), "error")


def _failed(order: Run, reason: FailureReason, error: BaseException) -> Failed:
    detail = str(error) if reason in TOLD else f"{type(error).__name__}: {error}"
    # What cannot be said as UTF-8, of a file's own words, is told by its number.
    detail = detail[:MOST_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
    index = error.index if isinstance(error, ReferenceRefusedError | LoraRefusedError) else 0
    request_id = order.request.request_id
    return Failed(request_id=request_id, reason=reason, detail=detail, index=index)


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
