"""What gateway and runner say to each other, and how it is framed.

A frame is two big-endian lengths, a JSON header, and raw bytes (empty but for pictures):
`>II`, header, payload. JSON because a runner's death in mid-sentence must never run code here.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pipelines.types import GenerationRequest, LoadOptions, Stage
from pipelines.verdicts import Reason
from server.provenance.markers import DEFAULT_MARKING, Marking
from server.schemas import OutputFormat

LENGTHS = struct.Struct(">II")

FailureReason = Literal[
    "cancelled",
    "out_of_memory",
    "unavailable",
    "prompt_refused",
    "reference_refused",
    "lora_refused",
    "error",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Gateway to runner, once, first: make a pipeline. Paths and names are the operator's.

    `marking` is what goes into each file beside the picture.
    """

    pipeline_factory: str
    options: LoadOptions
    marking: Marking = DEFAULT_MARKING
    log_level: str = "info"
    kind: Literal["load"] = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Gateway to runner: make the images of this request."""

    request: GenerationRequest
    output_format: OutputFormat
    kind: Literal["run"] = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Gateway to runner: stop this request at its next step, if it is still drawn."""

    request_id: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Runner to gateway, while it loads: what `pipelines.types.OnLoadProgress` was told."""

    stage: str
    fraction: float
    kind: Literal["loading"] = "loading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Runner to gateway: the pipeline is loaded; `description` is for people."""

    description: str
    load_seconds: float
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """Runner to gateway, its last word: why there is no pipeline."""

    reason: str
    kind: Literal["load_failed"] = "load_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Runner to gateway: `step` of `steps` of a stage of image `image_index` is done."""

    request_id: str
    stage: Stage
    image_index: int
    step: int
    steps: int
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Runner to gateway: this request has no more use for the device, which is free.

    Its images follow as they are encoded, and `Done` or `Failed` is its last word.
    """

    request_id: str
    kind: Literal["drawn"] = "drawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Runner to gateway: one finished image; the frame's payload holds the file's bytes.

    `verdict` says what the safety check found. Of a flagged image the bytes are a black one's.
    """

    request_id: str
    index: int
    content_type: str
    width: int
    height: int
    verdict: Reason
    has_nsfw_concept: bool
    kind: Literal["image"] = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Runner to gateway, where the request wants it: a small JPEG of an image that is being drawn.

    The payload holds the file's bytes. It was checked like an image; a flagged one is black.
    """

    request_id: str
    index: int
    step: int
    steps: int
    content_type: str
    width: int
    height: int
    has_nsfw_concept: bool
    kind: Literal["preview"] = "preview"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Runner to gateway: all images of the request were sent; `timings` holds seconds.

    `prompt` is what they were made from, `applied` tells how they were really made, as
    `pipelines.types.Pipeline.describe` says it.
    """

    request_id: str
    prompt: str
    timings: dict[str, float]
    applied: dict[str, str]
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Runner to gateway: the request failed, the runner is well.

    `detail` stays in our logs, but for `unavailable` and `lora_refused`, where it tells the caller
    what is missing or wrong. `index` is that of the reference image or the LoRA that is refused.
    """

    request_id: str
    reason: FailureReason
    detail: str
    index: int = 0
    kind: Literal["failed"] = "failed"


ToRunner = Annotated[Load | Run | Cancel, Field(discriminator="kind")]
FromRunner = Annotated[
    Loading | Ready | LoadFailed | Progress | Drawn | Preview | Image | Done | Failed,
    Field(discriminator="kind"),
]

TO_RUNNER: TypeAdapter[ToRunner] = TypeAdapter(ToRunner)
FROM_RUNNER: TypeAdapter[FromRunner] = TypeAdapter(FromRunner)


def to_runner(message: ToRunner) -> bytes:
    """Frame a message of the gateway."""
    header = TO_RUNNER.dump_json(message)
    return LENGTHS.pack(len(header), 0) + header


def from_runner(message: FromRunner, payload: bytes = b"") -> bytes:
    """Frame a message of a runner."""
    header = FROM_RUNNER.dump_json(message)
    return LENGTHS.pack(len(header), len(payload)) + header + payload
