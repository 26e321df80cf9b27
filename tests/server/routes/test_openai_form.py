"""OpenAI's words for an image, and fal's for the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.types import Model
from server.catalogue import CATALOGUE
from server.errors import FalError, InputError, RequestError
from server.jobs import Job, Outcome
from server.offer import Offer
from server.routes import openai_form
from server.routes.openai_form import AnswerForm, Translated, write_answer

URI = "data:image/png;base64,AAAA"
FLASH = "fal-ai/flux-2/flash"
EVERYTHING = Offer(tuple(Model), tuple(CATALOGUE))


def translate(fields: Any, image_urls: list[Any] | None, offer: Offer = EVERYTHING) -> Translated:
    """Translate for a server that serves everything, or what is said."""
    return openai_form.translate(fields, image_urls, offer)


def body(image_urls: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """Translate and return the input that the endpoint gets, which it must accept."""
    asked = translate({"prompt": "A boat", **fields}, image_urls)
    asked.endpoint.parse(asked.body)
    return asked.body


def refused(image_urls: list[Any] | None = None, **fields: Any) -> FalError:
    """Return the error for fields that cannot be translated, or that the endpoint refuses."""
    with pytest.raises(FalError) as caught:
        asked = translate({"prompt": "A boat", **fields}, image_urls)
        asked.endpoint.parse(asked.body)
    return caught.value


def place(error: FalError) -> str:
    """Return the field that a mistake is in."""
    assert isinstance(error, InputError), error
    name: str = error.body["detail"][0]["loc"][1]
    return name


def done(body: dict[str, Any], verdicts: str, prompt: str = "A boat") -> Job:
    """Make a completed job."""
    outcome = Outcome(
        http_status=200, body=json.dumps(body), keep_seconds=1, verdicts=verdicts, prompt=prompt
    )
    return Job(
        request_id="one",
        endpoint_id=FLASH,
        owner="me",
        origin="http://box",
        input="{}",
        created_at=1234.5,
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("model", "endpoint_id"),
    [
        (None, "fal-ai/flux-2"),
        ("", "fal-ai/flux-2"),
        ("dall-e-2", "fal-ai/flux-2"),
        ("dall-e-3", "fal-ai/flux-2"),
        ("gpt-image-1", "fal-ai/flux-2"),
        ("gpt-image-1-mini", "fal-ai/flux-2"),
        ("chatgpt-image-latest", "fal-ai/flux-2"),
        ("flux-2", "fal-ai/flux-2"),
        ("fal-ai/flux-2-flex", "fal-ai/flux-2-flex"),
        ("flux-2/flash", FLASH),
    ],
)
def test_models(model: str | None, endpoint_id: str) -> None:
    """Ids of fal, with or without `fal-ai/`; OpenAI's own names mean the default, as none does."""
    assert translate({"prompt": "A", "model": model}, None).endpoint.id == endpoint_id


def test_every_endpoint_is_reached_by_one_of_the_two_routes(tmp_path: Path) -> None:
    """By its id, and each that edits by the id without `/edit` too."""
    for name in filter(None, (endpoint.lora for endpoint in CATALOGUE.values())):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    everything = Offer(tuple(Model), tuple(CATALOGUE), tmp_path)
    for endpoint in CATALOGUE.values():
        images = [URI] if endpoint.reference_limit else None
        asked = translate({"model": endpoint.id}, images, everything)
        assert asked.endpoint is endpoint
        assert asked.answer_form.prompt == ""
        if endpoint.id.endswith("/edit") and endpoint.id.removesuffix("/edit") in CATALOGUE:
            model = endpoint.id.removesuffix("/edit")
            assert translate({"model": model}, [URI], everything).endpoint is endpoint


def test_the_default_is_one_that_is_served() -> None:
    """Here, or with the weights of a small model alone; what is not served says why."""
    klein = Offer((Model.KLEIN_4B,), ())
    for model in (None, "gpt-image-1"):
        made = translate({"prompt": "A", "model": model}, None, klein).endpoint
        assert made.model is Model.KLEIN_4B
        assert translate({"model": model}, [URI], klein).endpoint.id == f"{made.id}/edit"
    with pytest.raises(RequestError, match="does not have the model dev") as caught:
        translate({"prompt": "A", "model": "flux-2"}, None, klein)
    assert caught.value.status == 404


def test_models_that_are_not_for_this() -> None:
    """Unknown ones, one that cannot edit, and one that cannot do without images."""
    assert refused(model="flux-9").status == 404
    assert len(str(refused(model="x" * 100_000).body)) < 1000
    assert refused(model="dall-e-9").status == 404
    for error in (refused([URI], model="flux-2-dev"), refused(model=f"{FLASH}/edit")):
        assert (type(error), error.status) == (RequestError, 400)


def test_sizes_numbers_and_formats() -> None:
    """`auto` is the endpoint's default, PNG is OpenAI's for every endpoint."""
    assert body(size="1024x768", n=2)["image_size"] == {"width": 1024, "height": 768}
    assert body(size="square")["image_size"] == "square"
    assert "image_size" not in body(size="auto")
    assert body(n=2)["num_images"] == 2
    assert body(model="flux-2-flex")["output_format"] == "png"
    assert body(output_format="webp")["output_format"] == "webp"


def test_qualities() -> None:
    """A lower one may be less exact, a higher one must be exact, and others say nothing."""
    assert body(quality="low")["acceleration"] == "high"
    for exact in ("high", "xhigh", "max", "hd"):
        assert body(quality=exact)["acceleration"] == "none"
    for silent in (body(quality="auto"), body(quality="medium"), body(quality="low", model=FLASH)):
        assert "acceleration" not in silent


def test_fal_s_own_fields_pass_and_foreign_ones_do_not() -> None:
    """What the endpoint has, also as a form's text; never a second word on how to answer."""
    asked: dict[str, Any] = {
        "seed": "7",
        "guidance_scale": 3,
        "style": "vivid",
        "user": "x",
        "sync_mode": True,
    }
    made = body(**asked, moderation="low", background="auto", enable_safety_checker="false")
    assert made == {
        "prompt": "A boat",
        "seed": "7",
        "guidance_scale": 3,
        "enable_safety_checker": "false",
        "sync_mode": False,
        "output_format": "png",
    }


@pytest.mark.parametrize(
    ("fields", "inline"),
    [
        ({}, False),
        ({"model": "dall-e-3"}, False),
        ({"model": "gpt-image-1"}, True),
        ({"model": "gpt-image-1", "response_format": "url"}, False),
        ({"response_format": "b64_json"}, True),
    ],
)
def test_the_form_of_the_answer(fields: dict[str, Any], inline: bool) -> None:
    """As asked, else as OpenAI's model of that name answers; inline leaves no file."""
    asked = translate({"prompt": "A", **fields}, None)
    assert asked.answer_form == AnswerForm(inline=inline, prompt="A")
    assert asked.endpoint.parse(asked.body).sync_mode is inline


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"n": 0}, "num_images"),
        ({"n": "many"}, "n"),
        ({"n": 2, "model": "flux-2-flex"}, "n"),
        ({"size": "1024"}, "size"),
        ({"size": "1024x99999999"}, "size"),
        ({"size": "256x256"}, "image_size"),
        ({"size": 5}, "size"),
        ({"quality": "best"}, "quality"),
        ({"response_format": "gif"}, "response_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"stream": True}, "stream"),
        ({"mask": True}, "mask"),
        ({"seed": "x"}, "seed"),
        ({"model": 5}, "model"),
    ],
)
def test_mistakes(fields: dict[str, Any], field: str) -> None:
    """Each is found before anything is accepted, and in its place."""
    assert place(refused(**fields)) == field


@pytest.mark.parametrize("fields", [None, [], "text", 5])
def test_a_body_that_is_no_object(fields: Any) -> None:
    """Is a mistake of the whole body."""
    with pytest.raises(InputError) as caught:
        translate(fields, None)
    assert caught.value.body["detail"][0]["loc"] == ["body"]


def test_images_to_edit() -> None:
    """All are used or none: those too many are an error, where fal leaves them out."""
    assert body([URI, URI], model=FLASH)["image_urls"] == [URI, URI]
    assert place(refused([URI] * 5, model=FLASH)) == "image"
    assert place(refused([], model=FLASH)) == "image_urls"
    assert place(refused([None], model=FLASH)) == "image_urls"


def test_answers() -> None:
    """URL or base64, and the prompt only where a model wrote another."""
    job = done({"images": [{"url": URI}, {"url": URI}]}, "ok,unchecked")
    assert write_answer(job, AnswerForm(inline=True, prompt="A boat")) == {
        "created": 1234,
        "data": [{"b64_json": "AAAA"}, {"b64_json": "AAAA"}],
    }
    assert write_answer(job, AnswerForm(inline=False, prompt="a boat"))["data"][1] == {
        "url": URI,
        "revised_prompt": "A boat",
    }


def test_blocked_images() -> None:
    """None but blocked ones is a refusal; one among others is black, in its place."""
    form = AnswerForm(inline=False, prompt="A boat")
    images = {"images": [{"url": URI}, {"url": URI}]}
    assert len(write_answer(done(images, "nsfw,ok"), form)["data"]) == 2
    with pytest.raises(InputError) as caught:
        write_answer(done(images, "nsfw,nsfw_second_look"), form)
    assert caught.value.body["detail"][0]["type"] == "content_policy_violation"
