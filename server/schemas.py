"""What goes over the wire besides inputs: results, and the queue's own bodies.

Names, order and descriptions are fal's: clients and generated documents depend on them.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class OutputFormat(StrEnum):
    """The file formats an image can be asked for in; the value is also the file's suffix."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class ImageFile(BaseModel):
    """One image of an answer."""

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str = Field(description="The mime type of the file.")
    file_name: str = Field(description="The name of the file.")
    file_size: int = Field(description="The size of the file in bytes.")
    width: int = Field(description="The width of the image in pixels.")
    height: int = Field(description="The height of the image in pixels.")


Images = Annotated[list[ImageFile], Field(description="The generated images.")]
UsedSeed = Annotated[
    int,
    Field(
        description="Seed of the generated image: the one of the input, or the one that was drawn."
    ),
]


class FullOutput(BaseModel):
    """Output of [dev] and [klein]."""

    images: Images
    timings: Annotated[dict[str, float], Field(description="Seconds spent, by stage.")]
    seed: UsedSeed
    has_nsfw_concepts: Annotated[
        list[bool], Field(description="Whether the generated images contain NSFW concepts.")
    ]
    prompt: Annotated[str, Field(description="The prompt used for generating the image.")]


class SlimOutput(BaseModel):
    """Output of flex, pro and max."""

    images: Images
    seed: UsedSeed


class LogEntry(BaseModel):
    """One line of a request's log, with every key that one of fal's clients reads."""

    message: str
    timestamp: str
    level: Literal["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"] = "INFO"
    source: Literal["USER"] = "USER"
    labels: dict[str, str]


class QueueStatus(BaseModel):
    """Body of submit and status.

    `logs` and `metrics` are always sent, `queue_position` only while queued: fal's Python client
    fails on a missing key, so bodies are dumped with `exclude_unset` and never with defaults.
    """

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    queue_position: int = Field(0, description="How many requests will run before this one.")
    logs: list[LogEntry] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    error: str | None = None
    error_type: str | None = None


class CancelAnswer(BaseModel):
    """Body of a cancel that reached its job; `success` is what the OpenAPI documents promise."""

    status: Literal["OK", "CANCELLATION_REQUESTED"]
    success: Literal[True] = True
