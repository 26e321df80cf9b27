"""The fields that inputs are made of, and the sizes that have names.

Names, defaults, ranges and descriptions are fal's: clients and generated documents depend on them.
Unknown keys are ignored, as fal does.
"""

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

PRESET_SIZES: dict[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Width and height in pixels of fal's named sizes."""


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
AutoName = Literal["auto", PresetName]


def _judge_size(names: TypeAdapter[str]) -> BeforeValidator:
    """Make what judges an object as `ImageSize` alone and anything else as one of `names`.

    Left to pydantic's union, one wrong width would be reported once for each branch, with the
    branch's name inside `loc`.
    """

    def judge(value: Any) -> ImageSize | str:
        if isinstance(value, dict):
            return ImageSize.model_validate(value)
        return names.validate_python(value)

    return BeforeValidator(judge)


class Input(BaseModel):
    """What every endpoint's input is: an object whose other keys are ignored."""

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
NegativePrompt = Annotated[
    Text, Field(description="What to avoid in the image, for classifier-free guidance.")
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
STEPS = "Number of Inference Steps"
URLS = "Image URLs"
"""Titles as fal has them, where they are not made of the field's name."""

NumInferenceSteps = Annotated[
    int, Field(title=STEPS, ge=4, le=50, description="The number of inference steps to perform.")
]
_SIZE = Field(
    description="The size of the image to generate. "
    "The width and height must be between 512 and 2048 pixels."
)
_BY_PRESET = _judge_size(TypeAdapter(PresetName))
AnySize = Annotated[ImageSize | PresetName, _BY_PRESET, _SIZE]
SizeOrInputs = Annotated[
    Annotated[ImageSize | PresetName, _BY_PRESET] | None,
    Field(
        description="The size of the image to generate. The width and height must be between 512 "
        "and 2048 pixels. If not provided, the size of the first input image is used."
    ),
]
"""None is the size of the first input image."""
SizeOrAuto = Annotated[
    ImageSize | AutoName,
    _judge_size(TypeAdapter(AutoName)),
    Field(
        description="The size of the generated image. If `auto`, it is the size of the first input "
        "image."
    ),
]
NumImages = Annotated[
    int,
    Field(
        title="Number of Images",
        ge=1,
        le=MAX_IMAGES,
        description="The number of images to generate.",
    ),
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
AnyFormat = Annotated[
    Literal["jpeg", "png", "webp"], Field(description="The format of the generated image.")
]
SlimFormat = Annotated[
    Literal["jpeg", "png"], Field(description="The format of the generated image.")
]
SafetyTolerance = Annotated[
    Literal["1", "2", "3", "4", "5"],
    Field(
        description="The safety tolerance level for the generated image. "
        "1 being the most strict and 5 being the most permissive."
    ),
]
FirstFourUrls = Annotated[
    list[Text],
    Field(
        title=URLS,
        min_length=1,
        description="The URLs of the images for editing. A maximum of 4 images are allowed, "
        "if more are provided, only the first 4 will be used.",
    ),
]
