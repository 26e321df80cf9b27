"""What goes over the wire: each endpoint's input and output, and the queue's own bodies.

Names, order, defaults, ranges and descriptions are fal's: clients and generated documents
depend on them. Unknown keys are ignored, as fal does.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
)
from pydantic_core import PydanticKnownError

from pipelines.types import MAX_SEED

MAX_IMAGES = 4
MIN_SIDE_PIXELS = 512
MAX_SIDE_PIXELS = 2048
RANDOM_SEED_LIMIT = 2**32
"""Drawn seeds stay below this, so that JavaScript's numbers hold them exactly."""

PRESET_SIZES: dict[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Width and height in pixels of fal's named sizes."""


class OutputFormat(StrEnum):
    """The file formats an image can be asked for in; the value is also the file's suffix."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class ImageSize(BaseModel):
    """A size in pixels; each side left out is 512."""

    width: int = Field(
        512,
        ge=MIN_SIDE_PIXELS,
        le=MAX_SIDE_PIXELS,
        description="The width of the generated image.",
    )
    height: int = Field(
        512,
        ge=MIN_SIDE_PIXELS,
        le=MAX_SIDE_PIXELS,
        description="The height of the generated image.",
    )


PresetName = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
AnyFormat = Literal["jpeg", "png", "webp"]

_PRESET_NAME: TypeAdapter[str] = TypeAdapter(PresetName)


def _choose_size(value: Any) -> ImageSize | str:
    """Judge an object as `ImageSize` alone and anything else as a preset's name.

    Left to pydantic's union, one wrong width would be reported once for each branch, with the
    branch's name inside `loc`.
    """
    if isinstance(value, dict):
        return ImageSize.model_validate(value)
    return _PRESET_NAME.validate_python(value)


class _PassThrough(BaseModel):
    model_config = ConfigDict(extra="ignore")


def _check_encodable(text: str) -> str:
    """Refuse lone surrogates: JSON can carry them, nothing behind it can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticKnownError("string_unicode") from None
    return text


Text = Annotated[str, AfterValidator(_check_encodable)]

GenerationPrompt = Annotated[
    Text,
    Field(
        description="The prompt to generate an image from.",
        examples=["A lighthouse on a cliff at dusk, long exposure, soft waves"],
    ),
]
EditPrompt = Annotated[
    Text,
    Field(
        description="The prompt to edit the image.",
        examples=["Remove the meat from the hamburger"],
    ),
]
GuidanceScale = Annotated[
    float,
    Field(
        ge=0,
        le=20,
        allow_inf_nan=False,
        description="How closely the image follows the prompt; higher is closer.",
    ),
]
Seed = Annotated[
    int | None,
    Field(
        ge=-(2**63),
        le=MAX_SEED - (MAX_IMAGES - 1),
        description="The seed to use for the generation. "
        "If not provided, a random seed will be used.",
    ),
]
NumInferenceSteps = Annotated[
    int, Field(ge=4, le=50, description="The number of inference steps to perform.")
]
AnySize = Annotated[
    ImageSize | PresetName,
    BeforeValidator(_choose_size),
    Field(
        description="The size of the image to generate. "
        "The width and height must be between 512 and 2048 pixels."
    ),
]
NumImages = Annotated[
    int, Field(ge=1, le=MAX_IMAGES, description="The number of images to generate.")
]
AccelerationLevel = Annotated[
    Literal["none", "regular", "high"],
    Field(description="The acceleration level to use for the image generation."),
]
ExpandPrompt = Annotated[
    bool, Field(description="If set to true, the prompt will be expanded for better results.")
]
SyncMode = Annotated[
    bool,
    Field(
        description="If `True`, the media will be returned as a data URI and the output data "
        "won't be available in the request history."
    ),
]
CheckSafety = Annotated[
    bool, Field(description="If set to true, the safety checker will be enabled.")
]
AskedFormat = Annotated[AnyFormat, Field(description="The format of the generated image.")]


class TextToImageInput(_PassThrough):
    """Input of `flux-2` and `flux-2-dev`."""

    prompt: GenerationPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    num_inference_steps: NumInferenceSteps = 28
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    acceleration: AccelerationLevel = "regular"
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AskedFormat = "png"


class FlashInput(_PassThrough):
    """Input of `flux-2/flash`: the number of steps belongs to the model."""

    prompt: GenerationPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    image_size: AnySize = "landscape_4_3"
    num_images: NumImages = 1
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AskedFormat = "png"


class FlashEditInput(_PassThrough):
    """Input of `flux-2/flash/edit`: as flash, with the images to edit."""

    prompt: EditPrompt
    guidance_scale: GuidanceScale = 2.5
    seed: Seed = None
    image_size: AnySize = "square_hd"
    num_images: NumImages = 1
    enable_prompt_expansion: ExpandPrompt = False
    sync_mode: SyncMode = False
    enable_safety_checker: CheckSafety = True
    output_format: AskedFormat = "png"
    image_urls: Annotated[
        list[Text],
        Field(
            min_length=1,
            description="The URLs of the images for editing. A maximum of 4 images are allowed, "
            "if more are provided, only the first 4 will be used.",
        ),
    ]


class FlexInput(_PassThrough):
    """Input of `flux-2-flex`."""

    prompt: GenerationPrompt
    image_size: AnySize = "landscape_4_3"
    enable_prompt_expansion: ExpandPrompt = True
    seed: Seed = None
    safety_tolerance: Annotated[
        Literal["1", "2", "3", "4", "5"],
        Field(
            description="The safety tolerance level for the generated image. "
            "1 being the most strict and 5 being the most permissive."
        ),
    ] = "2"
    enable_safety_checker: CheckSafety = True
    output_format: Annotated[
        Literal["jpeg", "png"], Field(description="The format of the generated image.")
    ] = "jpeg"
    sync_mode: SyncMode = False
    guidance_scale: Annotated[
        float,
        Field(
            ge=1.5,
            le=10,
            allow_inf_nan=False,
            description="The guidance scale to use for the generation.",
        ),
    ] = 3.5
    num_inference_steps: Annotated[
        int, Field(ge=2, le=50, description="The number of inference steps to perform.")
    ] = 28


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
    """Output of the dev family."""

    images: Images
    timings: Annotated[dict[str, float], Field(description="Seconds spent, by stage.")]
    seed: UsedSeed
    has_nsfw_concepts: Annotated[
        list[bool], Field(description="Whether the generated images contain NSFW concepts.")
    ]
    prompt: Annotated[str, Field(description="The prompt used for generating the image.")]


class SlimOutput(BaseModel):
    """Output of the flex family."""

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
