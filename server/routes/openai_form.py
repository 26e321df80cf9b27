"""From OpenAI's words for an image to fal's, and from a result back.

Source: https://platform.openai.com/docs/api-reference/images. Nothing here knows HTTP.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.verdicts import Reason
from server.catalogue import CATALOGUE
from server.errors import RequestError, content_error, field_errors, json_safe
from server.family.endpoint import Endpoint
from server.family.fields import PRESET_SIZES
from server.image_urls import IMAGE_FIELD
from server.jobs import Job
from server.offer import Offer

EDIT_SUFFIX = "/edit"
OPENAI_MODELS = re.compile(r"(chatgpt|gpt)-image|dall-e-[23]$")
"""Names that tools have built in; here they mean the first model that is served."""

INLINE_MODELS = re.compile(r"(chatgpt|gpt)-image")
"""Of these OpenAI knows no URLs, so that their callers read `b64_json` without asking for it."""

FLAGGED = (Reason.NSFW, Reason.NSFW_SECOND_LOOK)
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

QUALITIES: Mapping[str, str | None] = MappingProxyType(
    {
        "low": "high",
        **dict.fromkeys(("auto", "medium", "standard")),
        **dict.fromkeys(("high", "xhigh", "max", "hd"), "none"),
    }
)
"""The `acceleration` that a `quality` means; None is the endpoint's own."""


class ImageRequest(BaseModel):
    """What is read of a request in OpenAI's form.

    Of the other fields those count that the endpoint itself has, such as `seed`; the endpoint also
    judges prompt, number and size.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: Any = None
    n: int | None = None
    size: str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = (
        None
    )
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the answer depends on. `inline`: the images are in it, and no file is written.

    `prompt` is the caller's, empty for an endpoint that writes its own.
    """

    inline: bool
    prompt: str


@dataclass(frozen=True, slots=True)
class Translated:
    """A request for an endpoint, which may hold whole images."""

    endpoint: Endpoint
    body: dict[str, Any]

    @property
    def answer_form(self) -> AnswerForm:
        """Return what has to be remembered of it; the body is one that the endpoint accepts."""
        return AnswerForm(inline=self.body["sync_mode"], prompt=self.body.get("prompt", ""))


def translate(fields: Any, image_urls: Sequence[Any] | None, offer: Offer) -> Translated:
    """Make the request that fal's own routes would get, which is not validated yet.

    `image_urls` are the pictures to edit, None where none are edited; `offer` is what is served.
    Raises `InputError` for what OpenAI's form cannot say, `RequestError` 404 for a model that is
    not served, and 400 for one that cannot do this.
    """
    try:
        asked = ImageRequest.model_validate(fields)
    except ValidationError as error:
        raise field_errors(error) from error
    endpoint = _find(asked.model, offer, editing=image_urls is not None)
    known = endpoint.input.model_fields
    extra = asked.model_extra or {}
    _refuse_the_impossible(asked, extra)
    body = {name: value for name, value in extra.items() if name in known and value is not None}
    body["sync_mode"] = _is_inline(asked)
    body["output_format"] = asked.output_format or "png"
    if asked.prompt is not None:
        body["prompt"] = asked.prompt
    if asked.size not in (None, "auto"):
        body["image_size"] = _read_size(asked.size)
    if asked.n is not None:
        _set_number(body, asked.n, known)
    acceleration = QUALITIES[asked.quality] if asked.quality else None
    if acceleration and "acceleration" in known:
        body["acceleration"] = acceleration
    if image_urls is not None:
        _set_images(body, image_urls, endpoint)
    return Translated(endpoint, body)


def write_answer(job: Job, form: AnswerForm) -> dict[str, Any]:
    """Make OpenAI's answer of a job that gave images.

    Raises `InputError` content_policy_violation where the safety checker let none of them through:
    a black picture would tell this form's readers nothing. One among others stays black.
    """
    outcome = job.outcome
    if outcome is None:
        raise ValueError(f"{job.request_id} is not completed")
    verdicts = (outcome.verdicts or "").split(",")
    if all(verdict in FLAGGED for verdict in verdicts):
        message = "The safety checker let no image of this request through"
        raise content_error("content_policy_violation", message, loc=("prompt",), value=form.prompt)
    data = []
    for image in json.loads(outcome.body)["images"]:
        url = image["url"]
        entry = {"b64_json": url.partition(",")[2]} if form.inline else {"url": url}
        if outcome.prompt and outcome.prompt != form.prompt:
            entry["revised_prompt"] = outcome.prompt
        data.append(entry)
    return {"created": int(job.created_at), "data": data}


def _refuse_the_impossible(asked: ImageRequest, extra: Mapping[str, Any]) -> None:
    if extra.get("mask"):
        message = "FLUX.2 edits whole images: there is no mask"
        raise content_error("invalid_value", message, loc=("mask",), value="mask")
    if asked.stream:
        message = "There is no stream here; fal's own /stream routes show an image being drawn"
        raise content_error("invalid_value", message, loc=("stream",), value=True)


def _find(model: str | None, offer: Offer, *, editing: bool) -> Endpoint:
    """Return the endpoint of a model's name, which may do without fal's `fal-ai/`."""
    if not model or OPENAI_MODELS.match(model):
        named = next((each for each in offer.endpoints if not each.reference_limit), None)
    else:
        named = CATALOGUE.get(model) or CATALOGUE.get(f"fal-ai/{model}")
    if named is None:
        raise RequestError(404, f"The model {json_safe(model)!r} is not served here")
    if editing and not named.reference_limit:
        edits = CATALOGUE.get(named.id + EDIT_SUFFIX)
        if edits is None:
            raise RequestError(400, f"{named.id} cannot edit images", "bad_request")
        named = edits
    elif named.reference_limit and not editing:
        raise RequestError(400, f"{named.id} needs images: see /v1/images/edits", "bad_request")
    return offer.find(named.id)


def _is_inline(asked: ImageRequest) -> bool:
    if asked.response_format:
        return asked.response_format == "b64_json"
    return bool(asked.model and INLINE_MODELS.match(asked.model))


def _read_size(size: str | None) -> dict[str, int] | str:
    """Return fal's `image_size`: pixels, or one of its own names."""
    text = size or ""
    pixels = SIZE.fullmatch(text)
    if pixels:
        return {"width": int(pixels[1]), "height": int(pixels[2])}
    if text in PRESET_SIZES:
        return text
    message = "Input should be 'auto' or a size in pixels such as '1024x768'"
    raise content_error("invalid_value", message, loc=("size",), value=size)


def _set_number(body: dict[str, Any], number: int, known: Mapping[str, Any]) -> None:
    if "num_images" in known:
        body["num_images"] = number
    elif number != 1:
        message = "This model makes one image at a time"
        raise content_error("invalid_value", message, loc=("n",), value=number)


def _set_images(body: dict[str, Any], urls: Sequence[Any], endpoint: Endpoint) -> None:
    """Give the images, all of which the endpoint must use: fal leaves out those too many."""
    if len(urls) > endpoint.reference_limit:
        message = f"This model edits at most {endpoint.reference_limit} images"
        raise content_error("invalid_value", message, loc=("image",), value=len(urls))
    body[IMAGE_FIELD] = list(urls)
