"""A second door to the same queue, in OpenAI's form: `/v1/images/generations` and `/edits`.

Errors are raised as everywhere; `openai_errors` puts them into OpenAI's form.
"""

import base64
import re
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission
from server.errors import InputError
from server.image_urls import IMAGE_FIELD
from server.jobs import Job
from server.offer import Offer
from server.routes.answers import (
    AsciiJSONResponse,
    aside,
    error_response,
    read_body,
    read_json,
)
from server.routes.auth import caller_of
from server.routes.doors import door_of
from server.routes.multipart import read_parts
from server.routes.openai_errors import PREFIX
from server.routes.openai_form import AnswerForm, Translated, translate, write_answer
from server.routes.queue import outcome_headers, replay
from server.routes.run import Waiter, left
from server.routes.wishes import read_wishes

IMAGE_NAMES = ("images", "image", IMAGE_FIELD)
"""OpenAI's two and the endpoint's own; a form's may have a number behind them."""

IMAGE_PART = re.compile(rf"({'|'.join(IMAGE_NAMES)})(\[\d*\])?")
URL_STARTS = (b"http://", b"https://", b"data:")
FINAL = {"x-should-retry": "false"}
"""What OpenAI's clients read: the queue has tried already, and would do the same again."""


class ImageRoutes:
    """The routes over the given parts; `router` holds them."""

    def __init__(
        self, admission: Admission, waiter: Waiter, offer: Offer, body_limit_bytes: int
    ) -> None:
        self._offer = offer
        self._admission = admission
        self._waiter = waiter
        self._body_limit_bytes = body_limit_bytes
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route(f"{PREFIX}generations", self.generate, methods=["POST"])
        self.router.add_api_route(f"{PREFIX}edits", self.edit, methods=["POST"])

    async def generate(self, request: Request) -> Response:
        """Draw images of a prompt."""
        job, form = await self._accept(request, await self._read_prompt(request))
        return await self._answer(request, job, form)

    async def edit(self, request: Request) -> Response:
        """Edit the images of a form, or those that JSON has the URLs of."""
        job, form = await self._accept(request, await self._read_edit(request))
        return await self._answer(request, job, form)

    async def _read_prompt(self, request: Request) -> Translated:
        return translate(await read_json(request, self._body_limit_bytes), None, self._offer)

    async def _read_edit(self, request: Request) -> Translated:
        content_type = request.headers.get("content-type", "")
        if content_type.lower().startswith("multipart/form-data"):
            body = await read_body(request, self._body_limit_bytes)
            return await aside(len(body), _translate_form, body, content_type, self._offer)
        fields = await read_json(request, self._body_limit_bytes)
        return translate(fields, _urls_in(fields), self._offer)

    async def _accept(self, request: Request, asked: Translated) -> tuple[Job, AnswerForm]:
        """Accept the request; its images are not kept while it is waited for."""
        asked.endpoint.parse(asked.body)
        job = await self._admission.accept(
            caller_of(request),
            asked.endpoint,
            asked.body,
            door_of(request).files_origin,
            read_wishes(request),
        )
        return job, asked.answer_form

    async def _answer(self, request: Request, job: Job, form: AnswerForm) -> Response:
        done = await self._waiter.wait(request, job)
        if done is None:
            return left()
        answer = replay(done)
        if answer.status_code != 200:
            answer.headers.update(FINAL)
            return answer
        return await aside(len(answer.body), _respond, done, form)


def _respond(job: Job, form: AnswerForm) -> Response:
    """Answer with the images of a job that gave some, or say that none may be seen."""
    headers = outcome_headers(job)
    try:
        return AsciiJSONResponse(write_answer(job, form), headers=headers)
    except InputError as error:
        return error_response(error, headers)


def _translate_form(body: bytearray, content_type: str, offer: Offer) -> Translated:
    """Read a form. Its images become data URIs, unless they are URLs."""
    fields: dict[str, Any] = {}
    urls: list[str] = []
    for part in read_parts(body, content_type):
        if not IMAGE_PART.fullmatch(part.name):
            fields[part.name] = part.is_file or part.text()
        elif bytes(part.data[:8]).startswith(URL_STARTS):
            urls.append(part.text())
        elif part.data:
            payload = base64.b64encode(part.data).decode("ascii")
            urls.append(f"data:application/octet-stream;base64,{payload}")
    # A form cannot leave a value out that its page has a field for.
    given = {name: value for name, value in fields.items() if value != "" or name == "prompt"}
    return translate(given, urls, offer)


def _urls_in(fields: Any) -> list[Any]:
    """Return the images of a JSON body: by each name one URL or several, or as OpenAI has them.

    What is no text is left for the endpoint to refuse.
    """
    if not isinstance(fields, dict):
        return []
    items: list[Any] = []
    for given in filter(None, map(fields.get, IMAGE_NAMES)):
        items += given if isinstance(given, list) else [given]
    return [item.get("image_url") if isinstance(item, dict) else item for item in items]
