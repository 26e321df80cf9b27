"""The way of previews out of the runner: checked, encoded and sent beside the drawing."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace

import structlog
from PIL import Image

from pipelines.types import Step
from pipelines.verdicts import ImageChecker, look
from server.images import encode
from server.provenance.markers import DEFAULT_MARKING
from server.runners.messages import FromRunner, Preview, Run
from server.schemas import OutputFormat

log = structlog.get_logger(__name__)


class PreviewSender:
    """Sends the newest preview as soon as the encoder has time; older ones that wait are dropped.

    `checker` judges previews where images are checked; of `marking` they have the marker alone.
    """

    def __init__(self, encoder: Executor, send: Callable[[FromRunner, bytes], None]) -> None:
        self._encoder = encoder
        self._send = send
        self._waiting: Future[None] | None = None
        self.checker: ImageChecker | None = None
        self.marking = DEFAULT_MARKING

    def send(self, order: Run, step: Step, picture: Image.Image) -> None:
        """Have the preview of this step sent."""
        self.drop()
        self._waiting = self._encoder.submit(self._check_and_send, order, step, picture)

    def drop(self) -> None:
        """Send no preview that waits: something better is there."""
        if self._waiting:
            self._waiting.cancel()

    def _check_and_send(self, order: Run, step: Step, picture: Image.Image) -> None:
        """Send what may leave of a preview. One that cannot be checked or encoded is no loss."""
        try:
            image, verdict = look(self.checker, picture, order.request.settings)
            marking = replace(self.marking, watermark=False, credentials=None)
            encoded = encode(image, OutputFormat.JPEG, marking)
        except Exception:
            log.exception("a preview cannot leave", request_id=order.request.request_id)
            return
        message = Preview(
            request_id=order.request.request_id,
            index=step.image_index,
            step=step.step,
            steps=step.steps,
            content_type=encoded.content_type,
            width=encoded.width,
            height=encoded.height,
            has_nsfw_concept=verdict.flagged,
        )
        self._send(message, encoded.data)
